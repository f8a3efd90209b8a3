"""Scoring: the one piece of arithmetic that calibration and serving share.

A `ProbeBank` is all probes of an artifact laid out for the sensor. The probes' channels stand side by side, C in all, and
each place that is tapped has one matrix for the channels that read there: a token's scores `[C]` are the sum of the
products. What is not linear (readouts, heads) is done once a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.head import HeadTensors, apply_head, head_shapes
from probes.manifest import Probe, Site
from probes.readout import Scores


class Tap(NamedTuple):
    """A place in the model that probes read: a site of a block."""

    site: Site
    layer: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read at one tap."""

    matrix: torch.Tensor
    """float32 `[W, k]`: one column for each channel that reads here."""
    channels: npt.NDArray[np.int64]
    """Which of the bank's channels the columns are, `[k]`."""


@dataclass(frozen=True, slots=True)
class ProbeBank:
    """K probes of C channels together, ready to score."""

    probes: tuple[Probe, ...]
    readings: Mapping[Tap, Reading]
    heads: tuple[HeadTensors, ...]

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "ProbeBank":
        """Lay out the artifact's probes."""
        return cls.of(artifact.manifest.probes, artifact.tensors)

    @classmethod
    def of(cls, probes: Sequence[Probe], tensors: Mapping[str, torch.Tensor]) -> "ProbeBank":
        """Lay out `probes`, whose `tensors` are named and shaped as in an artifact."""
        rows: dict[Tap, list[tuple[torch.Tensor, npt.NDArray[np.int64]]]] = {}
        first = 0
        for probe in probes:
            own = np.arange(first, first + probe.channels)
            for layer, weight in zip(probe.layers, tensors[f"probe.{probe.name}.weight"], strict=True):
                rows.setdefault(Tap(probe.site, layer), []).append((weight, own))
            first += probe.channels
        readings = {
            tap: Reading(torch.cat([weight for weight, _ in each]).T, np.concatenate([own for _, own in each]))
            for tap, each in sorted(rows.items())
        }
        return cls(tuple(probes), readings, tuple(_head_tensors(probe, tensors) for probe in probes))

    @property
    def names(self) -> tuple[str, ...]:
        """The probes' names `[K]`."""
        return tuple(probe.name for probe in self.probes)

    @property
    def num_channels(self) -> int:
        """C, the channels of all probes."""
        return sum(probe.channels for probe in self.probes)

    def token_scores(self, activations: Mapping[Tap, torch.Tensor]) -> Scores:
        """Return token scores `[T, C]` from the activations `[T, W]` at the taps."""
        if not self.readings:
            raise ArtifactError("the artifact has no probes", field="probes", remedy="calibrate at least one probe")
        num_tokens = len(next(iter(activations.values())))
        total = torch.zeros(num_tokens, self.num_channels)
        for tap, reading in self.readings.items():
            total[:, reading.channels] += activations[tap].float() @ reading.matrix
        return np.asarray(total.numpy())

    def positions(self, num_tokens: int) -> npt.NDArray[np.int64]:
        """Return the sorted token positions that any readout needs from a prompt of `num_tokens` tokens."""
        readouts = [probe.readout for probe in self.probes]
        if all(readout.kind == "last" for readout in readouts):
            needed = {position for readout in readouts for position in readout.positions(num_tokens)}
            return np.array(sorted(needed), dtype=np.int64)
        return np.arange(num_tokens, dtype=np.int64)

    def request_scores(self, scores: Scores, positions: npt.NDArray[np.int64], num_tokens: int) -> Scores:
        """Return the request's scores `[K]` from token `scores` `[P, C]` at `positions` `[P]` of a prompt of `num_tokens`.

        A token without a score (NaN) that a probe needs leaves that probe with NaN.
        """
        result = np.empty(len(self.probes), dtype=np.float32)
        channel = 0
        for column, (probe, head) in enumerate(zip(self.probes, self.heads, strict=True)):
            wanted = probe.readout.positions(num_tokens)
            first = int(np.searchsorted(positions, wanted.start))
            own = scores[first : first + len(wanted), channel : channel + probe.channels]
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not scored
                result[column] = score_of(probe, probe.readout.reduce(own), head)
            channel += probe.channels
        return result


def score_of(probe: Probe, values: npt.NDArray[np.float64], head: HeadTensors) -> npt.NDArray[np.float64]:
    """Return the scores `[...]` that a probe gives to the values `[..., V]` of its readout."""
    return probe.scale * apply_head(probe.head, values, head) + probe.bias


def _head_tensors(probe: Probe, tensors: Mapping[str, torch.Tensor]) -> HeadTensors:
    prefix = f"probe.{probe.name}."
    names = head_shapes(probe.head, probe.num_values)
    return {name: tensors[prefix + name].double().numpy() for name in names}
