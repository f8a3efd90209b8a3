"""A recording: activations on disk, read back whole or one shard at a time, so that memory need not grow with the
prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from calibration.recording.moments import Moments
from calibration.recording.places import Where
from calibration.recording.shards import tensor_name
from probes.errors import CalibrationError

Rows = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded activations of N prompts, on disk."""

    shards: tuple[Path, ...]
    num_prompts: int

    def chunks(self, layer: int, where: Where) -> Iterator[tuple[Rows, Features]]:
        """Yield, shard by shard, prompts `[n]` and their `resid_post` of block `layer` at `where`, float32 `[n, D]`."""
        for path in self.shards:
            with safe_open(path, framework="pt") as shard:
                values = shard.get_tensor(tensor_name(where, layer)).float().numpy()
                yield shard.get_tensor("rows").numpy(), values

    def features(self, layer: int, where: Where, rows: Rows | None = None) -> Features:
        """Return `resid_post` of block `layer` at `where` of the prompts `rows` (of all), float32 `[N, D]`, in that
        order.

        A prompt may stand in `rows` more than once.
        """
        if not self.shards:
            raise CalibrationError("nothing was recorded", field="prompts", remedy="give at least one prompt")
        once, back = (None, None) if rows is None else np.unique(rows, return_inverse=True)
        place = self._places(once)
        result: Features | None = None
        for read, values in self.chunks(layer, where):
            if result is None:
                result = np.empty((self.num_prompts if once is None else len(once), values.shape[1]), dtype=np.float32)
            wanted = place[read] >= 0
            result[place[read[wanted]]] = values[wanted]
        return np.asarray(result) if back is None or result is None else result[back]

    def project(self, layer: int, where: Where, weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return every prompt's projection `[N]` on `weight` `[D]`, or `[N, k]` on `[D, k]`, in float64.

        One shard is held at a time.
        """
        result = np.empty((self.num_prompts, *weight.shape[1:]))
        for rows, values in self.chunks(layer, where):
            result[rows] = values.astype(np.float64) @ weight
        return result

    def moments(
        self, layer: int, where: Where, groups: Sequence[Rows], *, covariance: bool = False
    ) -> tuple[Moments, ...]:
        """Return the moments of each group of prompts, holding one shard at a time.

        Shards are merged in their order, so that the result is the same to the bit whoever recorded them, and when.
        """
        places = [self._places(rows) >= 0 for rows in groups]
        found: list[Moments | None] = [None] * len(groups)
        for rows, values in self.chunks(layer, where):
            for group, belongs in enumerate(places):
                chosen = values[belongs[rows]]
                if len(chosen):
                    part = Moments.of(chosen, covariance=covariance)
                    before = found[group]
                    found[group] = part if before is None else before.merge(part)
        if None in found:
            raise CalibrationError("a group holds no prompt", field="prompts", remedy="give prompts of both classes")
        return tuple(moments for moments in found if moments is not None)

    def _places(self, rows: Rows | None) -> Rows:
        """Return for each prompt where it stands in `rows`, -1 where it does not."""
        if rows is None:
            return np.arange(self.num_prompts)
        places = np.full(self.num_prompts, -1, dtype=np.int64)
        places[rows] = np.arange(len(rows))
        return places
