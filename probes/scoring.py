"""Scoring: the one piece of arithmetic that calibration and serving share.

A `ProbeBank` is all probes of an artifact laid out for the sensor. The probes' channels stand side by side, C in all,
and each place that is tapped has one matrix for the channels that read there: a token's scores `[C]` are the sum of the
products. What is not linear (readouts, heads) is done once a prompt.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.head import HEADS, HeadTensors
from probes.manifest import Probe, Site
from probes.pooling import Scores
from probes.template import Template, Turn, whole


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
    plan: "_Plan"
    template: Template | None = None
    """The model's chat template. Without it, a prompt is one turn."""

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "ProbeBank":
        """Lay out the artifact's probes."""
        return cls.of(artifact.manifest.probes, artifact.tensors, artifact.manifest.template)

    @classmethod
    def of(
        cls, probes: Sequence[Probe], tensors: Mapping[str, torch.Tensor], template: Template | None = None
    ) -> "ProbeBank":
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
        heads = tuple(_head_tensors(probe, tensors) for probe in probes)
        return cls(tuple(probes), readings, heads, _Plan.of(probes, list(readings.values())), template)

    @classmethod
    def side_by_side(cls, artifacts: Sequence[Artifact]) -> tuple["ProbeBank", tuple[slice, ...]]:
        """Return one bank of several artifacts' probes, and which of its scores `[K]` are each one's.

        For a model and its adapters, which pass through the same blocks.
        """
        probes: list[Probe] = []
        tensors: dict[str, torch.Tensor] = {}
        own: list[slice] = []
        for number, artifact in enumerate(artifacts):
            first = len(probes)
            for probe in artifact.manifest.probes:
                # Each in a name of its own: two artifacts may well call a probe the same.
                name, prefix = f"{number}.{probe.name}", f"probe.{probe.name}."
                probes.append(probe.model_copy(update={"name": name}))
                found = {key: tensor for key, tensor in artifact.tensors.items() if key.startswith(prefix)}
                tensors |= {f"probe.{name}.{key.removeprefix(prefix)}": tensor for key, tensor in found.items()}
            own.append(slice(first, len(probes)))
        return cls.of(probes, tensors), tuple(own)

    @property
    def names(self) -> tuple[str, ...]:
        """The probes' names `[K]`."""
        return tuple(probe.name for probe in self.probes)

    def channel(self, probe: str) -> int:
        """Return the first channel of the probe of this name."""
        return int(self.plan.firsts[self.names.index(probe)])

    def turns(self, token_ids: Sequence[int]) -> tuple[Turn, ...]:
        """Return the turns that a prompt is read in."""
        return self.template.turns(token_ids) if self.template else (whole(len(token_ids)),)

    def token_scores(self, activations: Mapping[Tap, torch.Tensor]) -> Scores:
        """Return token scores `[T, C]` from the activations `[T, W]` at the taps."""
        if not self.readings:
            raise ArtifactError("the artifact has no probes", field="probes", remedy="calibrate at least one probe")
        parts = [activations[tap].float() @ reading.matrix for tap, reading in self.readings.items()]
        return self.add_up(torch.cat(parts, dim=1).numpy())

    def add_up(self, parts: Scores) -> Scores:
        """Return token scores `[T, C]` from the taps' shares in them, `[T, P]`: the readings' columns side by side."""
        by_channel = parts if self.plan.in_order else parts.take(self.plan.order, axis=1)
        if len(self.plan.order) == len(self.plan.starts):
            return by_channel  # each channel is read at one tap
        return np.add.reduceat(by_channel, self.plan.starts, axis=1)

    def positions(self, turn: Turn) -> Sequence[int]:
        """Return the positions of the tokens that any readout needs of a turn, in order; a range if all."""
        offsets = self.plan.all_offsets
        if offsets is None:
            return range(turn.start, turn.stop)
        if turn.num_tokens > offsets[0]:
            return [turn.stop - 1 - offset for offset in offsets]
        return sorted({max(turn.stop - 1 - offset, turn.start) for offset in offsets})

    def turn_scores(self, scores: Scores, positions: Sequence[int], turn: Turn) -> Scores:
        """Return a turn's scores `[K]` from the token `scores` `[P, C]` at `positions` `[P]`.

        A token without a score (NaN) that a probe needs leaves that probe with NaN.
        """
        [own] = self.scores_of_all(scores, [positions], [turn])
        return np.asarray(own)

    def scores_of_all(self, scores: Scores, positions: Sequence[Sequence[int]], turns: Sequence[Turn]) -> Scores:
        """Return the scores `[R, K]` of R turns, whose token `scores` `[sum of P, C]` stand one after another."""
        plan = self.plan
        numbers = self._simple(scores, positions, turns)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not scored
            if plan.others:
                simple, numbers = numbers, np.empty((len(positions), len(self.probes)))
                numbers[:, plan.simple] = simple
                ends = list(accumulate(map(len, positions)))
                for row, own in enumerate(np.split(scores, ends[:-1])):
                    numbers[row, plan.others] = self._others(own, positions[row], turns[row])
            found: Scores = (numbers * plan.scales + plan.biases).astype(np.float32)
        return found

    def _simple(
        self, scores: Scores, positions: Sequence[Sequence[int]], turns: Sequence[Turn]
    ) -> npt.NDArray[np.floating]:
        """Return the values of the probes that read one channel at one token, `[R, simple ones]`."""
        plan = self.plan
        values: Scores
        if plan.all_offsets is not None and min((turn.num_tokens for turn in turns), default=0) > plan.all_offsets[0]:
            # As in nearly every batch: each turn has as many rows.
            rows = scores.reshape(len(positions), -1, scores.shape[1])
            values = rows[:, 0] if plan.one_each else rows[:, plan.places, plan.columns]
        else:
            starts, stops = (np.array(each)[:, None] for each in zip(*(turn[:2] for turn in turns), strict=True))
            wanted = np.maximum(stops - 1 - plan.offsets, starts)
            if plan.all_offsets is not None:
                wanted = np.stack([np.searchsorted(own, each) for own, each in zip(positions, wanted, strict=True)])
            else:
                wanted = wanted - starts
            *firsts, _ = accumulate(map(len, positions), initial=0)
            values = scores[np.array(firsts, np.int64)[:, None] + wanted, plan.columns]
        return values

    def _others(self, scores: Scores, positions: Sequence[int], turn: Turn) -> list[float]:
        """Return what all other probes' heads make of one turn's token scores."""
        found = []
        for index in self.plan.others:
            probe = self.probes[index]
            wanted, channel = probe.readout.positions(turn), self.plan.firsts[index]
            row = bisect_left(positions, wanted[0])
            rows = slice(row, row + len(wanted)) if isinstance(wanted, range) else np.searchsorted(positions, wanted)
            found.append(_output(probe, scores[rows, channel : channel + probe.channels], self.heads[index]))
        return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """What scoring a turn needs to know of the probes, worked out once: it is done at the end of every prompt."""

    order: npt.NDArray[np.int64]
    """Columns of the readings `[P]` in the order of their channels, taps in order within each."""
    in_order: bool
    """Whether they stand in that order as they are."""
    starts: npt.NDArray[np.int64]
    """Where in that order each channel begins, `[C]`."""
    firsts: npt.NDArray[np.int64]
    """Each probe's first channel, `[K]`."""
    simple: npt.NDArray[np.int64]
    """Probes that are the score of one channel at one token, `offsets` before the last: they are scored all at once."""
    columns: npt.NDArray[np.int64]
    """Their channels."""
    offsets: npt.NDArray[np.int64]
    all_offsets: tuple[int, ...] | None
    """Distinct offsets of all probes, largest first, where each reads one token; None where some read them all."""
    places: npt.NDArray[np.int64]
    """Where among them each of `offsets` stands."""
    one_each: bool
    """Whether the simple probes are all channels in order, at one token."""
    others: list[int]
    scales: npt.NDArray[np.float64]
    biases: npt.NDArray[np.float64]

    @classmethod
    def of(cls, probes: Sequence[Probe], readings: Sequence[Reading]) -> "_Plan":
        owners = np.concatenate([np.empty(0, np.int64), *(reading.channels for reading in readings)])
        order = np.argsort(owners, kind="stable")
        simple = [
            index
            for index, probe in enumerate(probes)
            if (probe.readout.kind, probe.channels, probe.head) == ("last", 1, "sum")
        ]
        offsets = sorted({probe.readout.offset for probe in probes}, reverse=True)
        firsts = np.cumsum([0, *(probe.channels for probe in probes)])[:-1]
        reads_all = not all(probe.readout.reads_one_token for probe in probes)
        return cls(
            order=order,
            in_order=bool((order == np.arange(len(order))).all()),
            starts=np.searchsorted(owners[order], np.unique(owners)),
            firsts=firsts,
            simple=np.array(simple, dtype=np.int64),
            columns=firsts[np.array(simple, dtype=np.int64)],
            offsets=np.array([probes[index].readout.offset for index in simple], dtype=np.int64),
            all_offsets=None if reads_all else tuple(offsets),
            places=np.array([offsets.index(probes[index].readout.offset) for index in simple], dtype=np.int64),
            one_each=len(simple) == len(probes) and len(offsets) == 1,
            others=[index for index in range(len(probes)) if index not in simple],
            scales=np.array([probe.scale for probe in probes], dtype=np.float64),
            biases=np.array([probe.bias for probe in probes], dtype=np.float64),
        )


def _output(probe: Probe, scores: Scores, tensors: HeadTensors) -> float:
    """Return what head and readout make of a turn's token scores `[P, C]`."""
    head, readout = HEADS[probe.head], probe.readout
    if probe.head_reads == "token":
        each = head.outputs(scores.astype(np.float64), tensors)
        return float(readout.reduce(each[:, None].astype(np.float32))[0])
    return float(head.outputs(readout.reduce(scores), tensors))


def score_of(probe: Probe, values: npt.NDArray[np.float64], head: HeadTensors) -> npt.NDArray[np.float64]:
    """Return the scores `[...]` of the values `[..., V]` of a probe's readout; its head reads requests."""
    return probe.scale * HEADS[probe.head].outputs(values, head) + probe.bias


def _head_tensors(probe: Probe, tensors: Mapping[str, torch.Tensor]) -> HeadTensors:
    prefix = f"probe.{probe.name}."
    names = HEADS[probe.head].shapes(probe.num_values)
    return {name: tensors[prefix + name].double().numpy() for name in names}
