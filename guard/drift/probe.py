"""One probe's streams: the whole traffic, and each stratum of each dimension."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType

from guard.drift.bets import Bets
from guard.drift.means import RunningMeans
from guard.drift.reference import Reference, cell_of
from guard.drift.sequential import SequentialTest
from guard.drift.settings import DriftSettings
from guard.drift.snapshot import Moved, ScoreDrift
from guard.drift.stability import RecentBins, stability
from guard.drift.state import ProbeState, StreamState

WHOLE = ("", "")
"""The dimension and the stratum of the whole traffic."""
NO_SCORES: Mapping[str, float] = MappingProxyType({})
PARTS = "probe"
"""In the place of a dimension: the probes that a combination adds up."""


@dataclass(slots=True)
class _Stream:
    test: SequentialTest
    recent: RecentBins

    def restore(self, state: StreamState) -> None:
        self.test.restore(state.test)
        self.recent.restore(state.recent)


class WatchedProbe:
    """The streams of one probe, all against one reference."""

    def __init__(
        self,
        adapter: str,
        name: str,
        reference: Reference,
        dimensions: Sequence[str],
        settings: DriftSettings,
        among: int,
        weights: Mapping[str, float] | None = None,
        named: tuple[str, str] = WHOLE,
    ) -> None:
        """`among` is the number of probes that share the sink's false alarms evenly.

        Half of a probe's own goes to the whole traffic, and half evenly to all strata that there can be. `weights` are
        those of the probes that a combination adds up. Where the probe is watched in a part of the traffic alone,
        `named` is that dimension and stratum.
        """
        self.adapter, self.name, self.reference = adapter, name, reference
        self._settings = settings
        self._bets = Bets.against(reference, settings.allowance)
        self._values = reference.values
        strata = len(dimensions) * (settings.most_strata + 1)
        self._whole_part = (0.5 if strata else 1.0) / among
        self._stratum_part = 0.5 / among / max(strata, 1)
        self._streams: dict[tuple[str, str], _Stream] = {WHOLE: self._stream(WHOLE)}
        self._means = {each: RunningMeans(settings.baseline, settings.window) for each in dimensions}
        self._weights, self._named = weights if weights and len(weights) > 1 else {}, named
        if self._weights:
            self._means[PARTS] = RunningMeans(settings.baseline, settings.window, each=len(self._weights))

    def add(self, score: float, strata: Sequence[tuple[str, str]], scores: Mapping[str, float] = NO_SCORES) -> None:
        """Take in one score, the (dimension, stratum) pairs of its request, and its other `scores`.

        One that is not finite is left out.
        """
        if not math.isfinite(score):
            return
        cell, index = cell_of(self._values, score), self.reference.bin_of(score)
        whole = self._streams[WHOLE]
        whole.test.add(cell)
        whole.recent.add(index)
        for key in strata:
            stream = self._streams.get(key)
            if stream is None:
                stream = self._streams[key] = self._stream(key)
            stream.test.add(cell)
            stream.recent.add(index)
            self._means[key[0]].add(key[1], score)
        if self._weights and self._weights.keys() <= scores.keys():
            for name, weight in self._weights.items():
                self._means[PARTS].add(name, weight * scores[name])

    def drift(self) -> Iterator[ScoreDrift]:
        """Yield what each stream shows: the whole traffic's, then by dimension and stratum."""
        for (dimension, stratum), stream in sorted(self._streams.items(), key=itemgetter(0)):
            if (dimension, stratum) == WHOLE:
                dimension, stratum = self._named
            evidence = stream.test.evidence()
            index = stability(self.reference, stream.recent.weights, stream.recent.effective_count)
            yield ScoreDrift(
                self.adapter, self.name, dimension, stratum, evidence.drifted, self._bets.num_cuts, evidence, index
            )

    def moved(self) -> Iterator[Moved]:
        """Yield what moved the mean, for each dimension with a baseline and later scores."""
        for dimension, means in self._means.items():
            found = means.parts() if dimension == PARTS else means.contributions()
            if found:
                shift, noise = sum(each.total for each in found), means.noise(self.reference.spread)
                yield Moved(self.adapter, self.name, dimension, shift, noise, found)

    def state(self) -> ProbeState:
        """Return plain data from which `restore` makes the streams what they are."""
        streams: dict[str, dict[str, StreamState]] = {}
        for (dimension, stratum), stream in self._streams.items():
            said = StreamState(test=stream.test.state(), recent=stream.recent.state())
            streams.setdefault(dimension, {})[stratum] = said
        means = {dimension: each.state() for dimension, each in self._means.items()}
        return ProbeState(against=self._against, streams=streams, means=means)

    def restore(self, state: ProbeState) -> bool:
        """Take on saved streams of the dimensions that still are.

        Return whether they fit. Those of another reference or allowance do not, nor damaged ones, and change nothing.
        """
        if state.against != self._against or not all(map(self._fits, state.streams.values())):
            return False
        for dimension, strata in state.streams.items():
            for stratum, said in strata.items():
                if (dimension, stratum) == WHOLE or dimension in self._means:
                    self._streams.setdefault((dimension, stratum), self._stream((dimension, stratum))).restore(said)
        for dimension, means in self._means.items():
            if dimension in state.means:
                means.restore(state.means[dimension])
        return True

    def _fits(self, strata: Mapping[str, StreamState]) -> bool:
        bettors, bins = self._bets.log_growth.shape[1], len(self.reference.counts)
        sizes = {(len(each.test.log_wealth), len(each.test.sums), len(each.recent.weights)) for each in strata.values()}
        return sizes <= {(bettors, bettors, bins)}

    @property
    def _against(self) -> str:
        return f"{self.reference.digest}/{self._settings.allowance!r}"

    def _stream(self, key: tuple[str, str]) -> _Stream:
        part = self._whole_part if key == WHOLE else self._stratum_part
        test = SequentialTest(self._bets, 1.0 / (self._settings.false_alarm * part), self._settings.run_length / part)
        return _Stream(test, RecentBins(len(self.reference.counts), self._settings.window))
