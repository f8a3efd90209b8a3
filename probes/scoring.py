"""Scoring: the one piece of arithmetic that calibration and serving share.

A `ProbeBank` is all probes of an artifact laid out for the sensor: per tapped block one matrix `[D, K]`, so that a token's
scores are the sum over blocks of `x_l @ matrix_l`, plus the biases.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.readout import Readout, Scores

SERVABLE_SITES = frozenset({"resid_post"})


@dataclass(frozen=True, slots=True)
class ProbeBank:
    """K probes, ready to score: `matrices[l]` is float32 `[D, K]` with zero columns for probes that do not read block l."""

    names: tuple[str, ...]
    readouts: tuple[Readout, ...]
    matrices: Mapping[int, torch.Tensor]
    bias: npt.NDArray[np.float32]

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "ProbeBank":
        """Lay out the artifact's probes. Raises `ArtifactError` for a site that cannot be served."""
        probes = artifact.manifest.probes
        matrices: dict[int, torch.Tensor] = {}
        for column, probe in enumerate(probes):
            if probe.site not in SERVABLE_SITES:
                raise ArtifactError(
                    f"site {probe.site!r} cannot be served",
                    field=f"probes.{probe.name}.site",
                    remedy=f"calibrate with a site of {sorted(SERVABLE_SITES)}",
                )
            weight = artifact.tensors[f"probe.{probe.name}.weight"]
            for row, layer in enumerate(probe.layers):
                matrix = matrices.setdefault(layer, torch.zeros(weight.shape[1], len(probes)))
                matrix[:, column] = weight[row]
        return cls(
            names=tuple(probe.name for probe in probes),
            readouts=tuple(probe.readout for probe in probes),
            matrices=matrices,
            bias=np.array([probe.bias for probe in probes], dtype=np.float32),
        )

    def token_scores(self, hidden: Mapping[int, torch.Tensor]) -> Scores:
        """Return token scores `[T, K]` from the residual streams `hidden[l]` `[T, D]` of the tapped blocks."""
        total = sum(hidden[layer].float() @ matrix for layer, matrix in self.matrices.items())
        if not isinstance(total, torch.Tensor):
            raise ArtifactError("the artifact has no probes", field="probes", remedy="calibrate at least one probe")
        return np.asarray(total.numpy() + self.bias, dtype=np.float32)

    def positions(self, num_tokens: int) -> npt.NDArray[np.int64]:
        """Return the sorted token positions that any readout needs from a prompt of `num_tokens` tokens."""
        if all(readout.kind == "last" for readout in self.readouts):
            needed = {position for readout in self.readouts for position in readout.positions(num_tokens)}
            return np.array(sorted(needed), dtype=np.int64)
        return np.arange(num_tokens, dtype=np.int64)

    def request_scores(self, scores: Scores, positions: npt.NDArray[np.int64], num_tokens: int) -> Scores:
        """Return the request's scores `[K]` from token `scores` `[P, K]` at `positions` `[P]` of a prompt of `num_tokens`."""
        result = np.empty(len(self.readouts), dtype=np.float32)
        for column, readout in enumerate(self.readouts):
            wanted = readout.positions(num_tokens)
            first = int(np.searchsorted(positions, wanted.start))
            result[column] = readout.reduce(scores[first : first + len(wanted), column])
        return result
