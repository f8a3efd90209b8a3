"""Batches: prompts of like length together, padded on the right.

Under causal attention a pad to the right of a token changes nothing for it: positions count from 0 as when unbatched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """B prompts padded to T tokens. `rows` says which prompts they are."""

    rows: npt.NDArray[np.int64]
    input_ids: torch.Tensor
    """int64 `[B, T]`."""
    mask: torch.Tensor
    """int64 `[B, T]`, 1 on the prompt's own tokens."""
    lengths: torch.Tensor
    """int64 `[B]`."""

    def from_end(self, offset: int) -> torch.Tensor:
        """Return for each prompt `[B]` the position `offset` tokens before its last, at least 0 (as `Readout` does)."""
        return (self.lengths - 1 - offset).clamp(min=0)


def plan_batches(lengths: Sequence[int], *, max_tokens: int, max_prompts: int) -> list[list[int]]:
    """Group rows, shortest first, into batches of at most `max_prompts` and, padded, about `max_tokens` tokens."""
    plan: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        # Rows come in ascending length, so the newcomer's length is what the batch would be padded to.
        if not plan or len(plan[-1]) >= max_prompts or (len(plan[-1]) + 1) * lengths[row] > max_tokens:
            plan.append([])
        plan[-1].append(row)
    return plan


def make_batch(token_ids: Sequence[Sequence[int]], rows: Sequence[int], device: torch.device) -> Batch:
    """Pad the prompts at `rows` on the right."""
    lengths = torch.tensor([len(token_ids[row]) for row in rows])
    input_ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(token_ids[row])] = torch.tensor(token_ids[row])
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return Batch(np.array(rows), input_ids.to(device), mask.to(device), lengths.to(device))


def iterate_batches(
    token_ids: Sequence[Sequence[int]], device: torch.device, *, max_tokens: int = 4096, max_prompts: int = 64
) -> Iterator[Batch]:
    """Yield all prompts, shortest first, in padded batches."""
    for rows in plan_batches([len(ids) for ids in token_ids], max_tokens=max_tokens, max_prompts=max_prompts):
        yield make_batch(token_ids, rows, device)
