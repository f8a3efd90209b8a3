"""Shards: a recording's work in pieces.

Which prompts are in which follows from the prompts alone, never from who reads them. So a recording that goes on after
an interruption, or that many machines share, ends with the same files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from calibration.prompts.batching import plan_batches
from calibration.prompts.template import EncodedPrompts
from calibration.recording.places import Where
from calibration.recording.stage_file import written_whole

Tensors = dict[str, torch.Tensor]
"""A shard's content: `<place>.<layer>` `[n, D]` for every place and layer, and `rows` `[n]`: which prompts they are.

A mean is float32; a stored token keeps the model's own precision, which loses nothing."""

_SHARD_BYTES = 128 << 20
_BATCH_TOKENS, _BATCH_PROMPTS = 4096, 64


@dataclass(frozen=True, slots=True)
class Shard:
    """One piece of the work: batches of prompts, each to be passed through the model together."""

    index: int
    batches: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> list[int]:
        """The prompts, in the order in which they stand in the shard."""
        return [row for batch in self.batches for row in batch]


class ActivationSource(Protocol):
    """Whatever can run a model over prompts: this process, workers on other machines, a serving engine."""

    def read(
        self, prompts: EncodedPrompts, where: Sequence[Where], shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Tensors]]:
        """Yield every shard once, in any order, with its content."""
        ...


def tensor_name(where: Where, layer: int) -> str:
    """Return the name under which a shard holds block `layer` at `where`."""
    return f"{where}.{layer}"


def plan_shards(lengths: Sequence[int], numbers_per_prompt: int) -> list[Shard]:
    """Divide prompts of the given token counts; a prompt leaves `numbers_per_prompt` numbers in its shard."""
    limit = max(_SHARD_BYTES // (4 * numbers_per_prompt), 1)
    shards: list[list[tuple[int, ...]]] = []
    room = 0
    for rows in plan_batches(lengths, max_tokens=_BATCH_TOKENS, max_prompts=min(_BATCH_PROMPTS, limit)):
        if len(rows) > room:
            shards.append([])
            room = limit
        shards[-1].append(tuple(rows))
        room -= len(rows)
    return [Shard(index, tuple(batches)) for index, batches in enumerate(shards)]


def save_shard(tensors: Tensors, path: Path) -> None:
    """Write a shard in one step. Raises `CalibrationError` where there is no room for it."""
    with written_whole(path) as staging:
        save_file(tensors, staging)


def is_whole(path: Path) -> bool:
    """Whether a shard stands at `path` with all its bytes: a machine that lost power may have kept half a file."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False
