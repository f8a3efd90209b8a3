"""Activations through a serving engine, so that probes are fitted on the numbers that serving will give them.

Calibration knows no engine: whoever has one registers it under the entry point group `foreguard.engines`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import torch
from safetensors.torch import load_file

from calibration.reading.shards import Shard, Tensors, Where
from calibration.template import EncodedPrompts
from probes.errors import CalibrationError

GROUP = "foreguard.engines"

Read = Callable[[Sequence[Sequence[int]], Sequence[Where], Path], None]
"""Passes prompts, as token ids, through the engine and writes `<place>.<layer>` `[N, D]` to a safetensors file."""

OpenEngine = Callable[[Path, int, Sequence[str], Path], AbstractContextManager[Read]]
"""What an entry point names: from a model folder, the longest prompt's tokens, the engine's own arguments, and a log."""


@dataclass(frozen=True, slots=True)
class EngineSource:
    """The source that asks a serving engine."""

    open_engine: OpenEngine
    model: Path
    options: tuple[str, ...]
    folder: Path
    """For the engine's log, and for the file through which it answers."""

    def read(
        self, prompts: EncodedPrompts, where: Sequence[Where], shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Tensors]]:
        """Yield the shards in their order. The engine makes its own batches of a shard's prompts."""
        if not shards:
            return
        answer, log = self.folder / "engine.partial", self.folder / "engine.log"
        with self.open_engine(self.model, int(prompts.lengths.max()), self.options, log) as read:
            for shard in shards:
                read([prompts.token_ids[row] for row in shard.rows], where, answer)
                tensors = load_file(answer)
                answer.unlink()
                yield shard, tensors | {"rows": torch.tensor(shard.rows)}


def find_engine(name: str) -> OpenEngine:
    """Return the engine registered as `name`. Raises `CalibrationError` that names those there are."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise CalibrationError(
            f"{name!r} is no engine", field="--engine", remedy=f"choose one of {', '.join(['hf', *sorted(found)])}"
        )
    engine: OpenEngine = found[name].load()
    return engine
