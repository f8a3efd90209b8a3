"""The sink that watches for drift: it takes in every decision of the journal, and shows what moved.

It keeps sums and counts, in constant memory. With K probes, D dimensions and S strata in each, there are at most
`K * (2 + D * (S + 1))` streams of about 2.5 KB each. A process that makes decisions has one sink, and calls it from one
thread.

What is compared with calibration's scores, which are of prompts' last turns, is a prompt's last turn that ends as the
chat template does. The worst turn, by which the prompt was decided, would be compared unfairly: of several turns, the
one in which a rule found something. A prompt without such a turn is compared with calibration's prompts that were left
open, where the artifact has scores of these.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from guard.drift.cusum import Cusum, Design
from guard.drift.interval import share
from guard.drift.novelty import NoveltyWatch
from guard.drift.probe import NO_SCORES, WatchedProbe
from guard.drift.reference import Reference
from guard.drift.settings import DriftSettings
from guard.drift.snapshot import DriftSnapshot, Flagged, RateDrift
from guard.drift.state import ProbeState, SinkState
from guard.drift.strata import OPEN, Strata, form_of
from guard.journal import Decision
from guard.verdict import Action

logger = logging.getLogger("vllm.foreguard.drift")

Dimension = Callable[[Decision], str | None]
DIMENSIONS: Mapping[str, Dimension] = {
    "route": attrgetter("route"),
    "tenant": attrgetter("tenant"),
    "form": form_of,
}
"""How traffic is divided where nothing else is said."""
By = Mapping[str, Mapping[str, Reference]]
"""References by adapter and score."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What scores are compared with. All are by adapter, the model itself being the one with the empty name."""

    references: By
    """Of prompts with a turn that ends as the chat template does."""
    open: By = field(default_factory=dict)
    """Of those without."""
    novelty: By = field(default_factory=dict)
    """Of novelty probes: `novelty.novelty_reference`."""
    combined: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """The weights of the probes that each combination adds up."""

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """What tells one of these from another, by adapter and score."""
        kinds = ("", self.references), (" open", self.open), (" novelty", self.novelty)
        found: dict[str, dict[str, str]] = {}
        for kind, by in kinds:
            for adapter, each in by.items():
                found.setdefault(adapter, {}).update((name + kind, own.digest) for name, own in each.items())
        return found


class DriftSink:
    """A sink of `guard.journal.Journal`.

    All alarms stand until `acknowledge`. The promise of `DriftSettings.false_alarm` is made anew whenever the sink
    begins anew, so that doing so k times without drift has k chances of a false alarm. A sink that goes on from a
    saved state has one.
    """

    def __init__(
        self,
        references: By | Compared,
        settings: DriftSettings | None = None,
        dimensions: Mapping[str, Dimension] = DIMENSIONS,
    ) -> None:
        """Scores without one of the `references` are not watched.

        `dimensions` name what traffic is divided by, and how to tell a request's stratum. Raises `CalibrationError`
        for settings that cannot be kept.
        """
        self._compared = references if isinstance(references, Compared) else Compared(references)
        self._settings = settings or DriftSettings()
        self._dimensions = dimensions
        self._usual_flags = self._settings.flag_rate
        self._begin()

    def record(self, decision: Decision) -> None:
        """Take in a decision on a prompt. Those on answers are left out: their scores have another reference."""
        if decision.judged != "prompt":
            return
        self._decisions += 1
        verdict = decision.verdict
        self._unscored.add(verdict.unscored is not None)
        if verdict.unscored is not None:
            return
        flagged = verdict.decision is not Action.ALLOW
        self._flags.add(flagged)
        strata = [(name, self._strata[name].of(of(decision))) for name, of in self._dimensions.items()]
        for key in strata:
            counts = self._flagged.setdefault(key, [0, 0])
            counts[0] += flagged
            counts[1] += 1
        self._compare(decision, strata)

    def _compare(self, decision: Decision, strata: list[tuple[str, str]]) -> None:
        adapter, scores = decision.model or "", decision.verdict.usual_scores
        if form_of(decision) == OPEN:
            for name, probe in self._open.get(adapter, {}).items():
                if name in scores:
                    probe.add(scores[name], (), NO_SCORES)
            return
        for name, probe in self._probes.get(adapter, {}).items():
            if name in scores:
                probe.add(scores[name], strata, scores)
        for name, novelty in self._novelty.get(adapter, {}).items():
            if name in scores:
                novelty.add(scores[name])

    def give_up(self) -> None:
        """Count a prompt that was never decided. It says nothing of scores, nor of the guard."""
        self._given_up += 1

    def acknowledge(self) -> None:
        """Start every stream anew: after an alarm that was understood, or a new policy.

        A new artifact has new references, and so needs a new sink.
        """
        self._begin()

    def expect_flags(self, usual: float) -> None:
        """Watch the rate of flags against another usual one, from now on: a policy came into force that flags more.

        `usual` is at least that of the settings.
        """
        usual = max(usual, self._settings.flag_rate)
        if usual != self._usual_flags:
            self._usual_flags = usual
            self._flags = Cusum(self._design(usual))

    def snapshot(self) -> DriftSnapshot:
        """Return everything as it is now. It takes a fraction of a millisecond for each stream."""
        probes = [probe for by in (self._probes, self._open) for adapter in by.values() for probe in adapter.values()]
        return DriftSnapshot(
            decisions=self._decisions,
            given_up=self._given_up,
            scores=[each for probe in probes for each in probe.drift()],
            novelty=[each.drift() for adapter in self._novelty.values() for each in adapter.values()],
            flags=RateDrift.of(self._flags),
            unscored=RateDrift.of(self._unscored),
            flagged=[Flagged(*key, share(*counts)) for key, counts in sorted(self._flagged.items())],
            moved=[each for probe in probes for each in probe.moved()],
        )

    def state(self) -> SinkState:
        """Return plain data from which `restore` makes a sink what this one is."""
        flagged: dict[str, dict[str, tuple[int, int]]] = {}
        for (dimension, stratum), (hits, count) in self._flagged.items():
            flagged.setdefault(dimension, {})[stratum] = (hits, count)
        return SinkState(
            decisions=self._decisions,
            given_up=self._given_up,
            strata={name: sorted(strata.names) for name, strata in self._strata.items()},
            probes=_states(self._probes),
            open=_states(self._open),
            novelty={
                adapter: {name: each.state() for name, each in watches.items()}
                for adapter, watches in self._novelty.items()
            },
            flags=self._flags.state(),
            unscored=self._unscored.state(),
            flagged=flagged,
        )

    def restore(self, state: SinkState) -> None:
        """Take on a saved state.

        What no longer fits (another reference, allowance or rate) starts anew, and is logged. Strata that were saved
        have streams again, be they more than `most_strata`: a merged state may name more.
        """
        self._begin()
        self._decisions, self._given_up = state.decisions, state.given_up
        for dimension, strata in self._strata.items():
            strata.names.update(state.strata.get(dimension, ()))
            for stratum, counts in state.flagged.get(dimension, {}).items():
                self._flagged[dimension, stratum] = list(counts)
        for what, cusum, said in (("flags", self._flags, state.flags), ("unscored", self._unscored, state.unscored)):
            try:
                cusum.restore(said)
            except ValueError as error:
                logger.warning("the CUSUM of %s starts anew: %s", what, error)
        for watched, found in ((self._probes, state.probes), (self._open, state.open)):
            for adapter, probes in watched.items():
                for name, probe in probes.items():
                    saved = found.get(adapter, {}).get(name)
                    if saved and not probe.restore(saved):
                        logger.warning("drift of probe %s starts anew: its reference or the allowance changed", name)
        for adapter, watches in self._novelty.items():
            for name, watch in watches.items():
                kept = state.novelty.get(adapter, {}).get(name)
                if kept and not watch.restore(kept):
                    logger.warning("novelty by probe %s starts anew: its reference or the allowance changed", name)

    def _begin(self) -> None:
        settings, compared = self._settings, self._compared
        among = sum(len(each) for by in (compared.references, compared.open, compared.novelty) for each in by.values())
        self._decisions = self._given_up = 0
        self._strata = {name: Strata(settings.most_strata) for name in self._dimensions}
        self._flagged: dict[tuple[str, str], list[int]] = {}
        self._probes = {
            adapter: {
                name: WatchedProbe(
                    *(adapter, name, reference, list(self._dimensions), settings, among),
                    weights=compared.combined.get(adapter, {}).get(name),
                )
                for name, reference in references.items()
            }
            for adapter, references in compared.references.items()
        }
        self._open = {
            adapter: {
                name: WatchedProbe(adapter, name, reference, [], settings, among, named=("form", OPEN))
                for name, reference in references.items()
            }
            for adapter, references in compared.open.items()
        }
        self._novelty = {
            adapter: {
                name: NoveltyWatch(adapter, name, reference, settings, among) for name, reference in references.items()
            }
            for adapter, references in compared.novelty.items()
        }
        self._flags = Cusum(self._design(self._usual_flags))
        self._unscored = Cusum(self._design(settings.unscored_rate))

    def _design(self, usual: float) -> Design:
        # A rate that is high already cannot double: halfway to all of the traffic, then.
        shifted = min(usual * self._settings.rate_shift, (1.0 + usual) / 2)
        return Design.of(usual, shifted, self._settings.run_length)


def _states(by: Mapping[str, Mapping[str, WatchedProbe]]) -> dict[str, dict[str, ProbeState]]:
    return {adapter: {name: probe.state() for name, probe in probes.items()} for adapter, probes in by.items()}
