"""Token scores, kept by KV-cache slot.

A cached prefix produces no hidden states, but its slots still hold the scores of the tokens whose keys and values they
hold, for exactly as long: every readout is exact on a prefix-cache hit, under chunked prefill and after a preemption.

It touches, of `vllm/v1/kv_cache_interface.py`: `KVCacheConfig`, `FullAttentionSpec`, and of `KVCacheSpec`
`page_size_bytes` and `block_size`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec

from serving.scoring_group import scoring_group
from serving.worker.host_copy import index_on


def room_for_cache(available: int, specs: Iterable[KVCacheSpec], channels: int) -> int:
    """Return how many of `available` bytes the KV cache of layers with these `specs` may have, for scores to fit beside
    it.

    Scores take `[slots + 1, channels]` float32. Layers of several kinds share one pool of blocks, and a block is at
    least as large as the smaller kind's layers together, so for such models this is a little less than it could be.
    """
    kinds: dict[type[KVCacheSpec], int] = {}
    block_size = 0
    for spec in specs:
        kinds[type(spec)] = kinds.get(type(spec), 0) + spec.page_size_bytes
        if isinstance(spec, FullAttentionSpec):
            block_size = max(block_size, spec.block_size)
    if not block_size:
        return available
    beside, block = block_size * channels * _FLOAT32, min(kinds.values())
    return max((available - channels * _FLOAT32) * block // (block + beside), 0)


_FLOAT32 = 4
_UNTOUCHED = 0x7FC0F0E0
"""Bits of a NaN that no tap reads or leaves."""


class _Host(NamedTuple):
    table: npt.NDArray[np.float32]
    bits: npt.NDArray[np.int32]
    """Of the table."""
    parts: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: torch.Tensor, parts: torch.Tensor) -> "_Host":
        table = rows.numpy()
        return cls(table, table.view(np.int32), parts.numpy())


class KVSlots:
    """What the taps read of each token, at the slot of its keys and values; a slot never written reads as NaN."""

    def __init__(self, kv_cache: KVCacheConfig, parts: torch.Tensor) -> None:
        """`parts` `[T, P]` is what the taps write, pass after pass."""
        self.group = scoring_group(kv_cache)
        self._block_size = kv_cache.kv_cache_groups[self.group].kv_cache_spec.block_size
        self._num_blocks = kv_cache.num_blocks
        num_slots = self._num_blocks * self._block_size
        # One row more, for tokens without a slot: vLLM's sign for them, -1, is the last row to numpy.
        self._rows = torch.empty(num_slots + 1, parts.shape[1], device=parts.device)
        self._values = self._rows[:num_slots]
        self._parts = parts
        # The same memory to numpy: for so little, PyTorch takes twice as long.
        self._host = _Host.of(self._rows, parts) if parts.is_cpu else None
        self.forget_all()

    def keep(self, slots: torch.Tensor, num_tokens: int) -> None:
        """Keep the first `num_tokens` rows of what the taps wrote at the first of `slots`.

        Where a token has no slot, what is kept may be another's. On the host that raises. On a device nobody can look
        without waiting for it, so `take` gives NaN from then on.
        """
        if self._host is None:
            self._rows.index_copy_(0, self._within(slots[:num_tokens]), self._parts[:num_tokens])
            return
        self._host.table[slots.numpy()[:num_tokens]] = self._host.parts[:num_tokens]
        # To look at the slots before would take longer.
        if self._host.bits.item(-1) != _UNTOUCHED:
            raise IndexError("a token of the batch has no slot in the KV cache")

    def slots(self, blocks: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
        """Return the slots of the tokens at `positions` of each of several turns, of whose prompts these are the
        blocks.
        """
        size, pairs = self._block_size, list(zip(blocks, positions, strict=True))
        if all(isinstance(own, range) for own in positions):
            # Whole turns: too many to go through one by one, as is quicker with a few.
            return np.concatenate([self._all_slots(own, turn) for own, turn in pairs])
        return np.array([own[at // size] * size + at % size for own, turn in pairs for at in turn], np.int64)

    def _all_slots(self, blocks: Sequence[int], turn: Sequence[int]) -> npt.NDArray[np.int64]:
        first = turn[0] // self._block_size
        own = np.array(blocks[first : turn[-1] // self._block_size + 1])
        slots: npt.NDArray[np.int64] = np.add.outer(own * self._block_size, np.arange(self._block_size)).ravel()
        start = turn[0] - first * self._block_size
        return slots[start : start + len(turn)]

    def take(self, slots: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return what is kept at `slots`, `[n, P]`, on the device."""
        if self._host is None:
            was_touched = self._rows[-1].view(torch.int32)[-1] != _UNTOUCHED
            return self._values[self._index(slots)].masked_fill(was_touched, torch.nan)
        return torch.from_numpy(self._host.table.take(slots, axis=0))

    def forget(self, blocks: Sequence[int]) -> None:
        """Make the scores of these blocks unknown."""
        if not blocks:
            return
        self._blocks().index_fill_(0, self._index(blocks), torch.nan)

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy the scores of whole blocks, (from, to), as vLLM copies their keys and values."""
        if not copies:
            return
        blocks = self._blocks()
        blocks.index_copy_(0, self._index([to for _, to in copies]), blocks[self._index([by for by, _ in copies])])

    def forget_all(self) -> None:
        """Make every score unknown."""
        self._values.fill_(torch.nan)
        self._rows[-1].view(torch.int32).fill_(_UNTOUCHED)

    def _within(self, slots: torch.Tensor) -> torch.Tensor:
        """Return slots as rows, the last one for all that are none: an index out of range would end the device's
        context.
        """
        return slots.clamp(-1, len(self._values)) % len(self._rows)

    def _blocks(self) -> torch.Tensor:
        return self._values.view(self._num_blocks, self._block_size, self._values.shape[1])

    def _index(self, numbers: npt.ArrayLike) -> torch.Tensor:
        return index_on(self._values.device, numbers)
