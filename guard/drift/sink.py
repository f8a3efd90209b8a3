"""The sink that watches for drift: it takes in every decision of the journal, and shows what moved.

It keeps sums and counts, in constant memory. With K probes, D dimensions and S strata in each, there are at most
`K * (1 + D * (S + 1))` streams of about 2.5 KB each. A process that makes decisions has one sink, and calls it from one
thread.
"""

import logging
from collections.abc import Callable, Mapping
from operator import attrgetter

from guard.drift.cusum import Cusum, Design
from guard.drift.interval import share
from guard.drift.probe import WatchedProbe
from guard.drift.reference import Reference
from guard.drift.settings import DriftSettings
from guard.drift.snapshot import DriftSnapshot, Flagged, RateDrift
from guard.drift.state import SinkState
from guard.drift.strata import Strata
from guard.journal import Decision
from guard.verdict import Action

logger = logging.getLogger("vllm.foreguard.drift")

Dimension = Callable[[Decision], str | None]
DIMENSIONS: Mapping[str, Dimension] = {"route": attrgetter("route"), "tenant": attrgetter("tenant")}
"""How traffic is divided where nothing else is said."""


class DriftSink:
    """A sink of `guard.journal.Journal`.

    All alarms stand until `acknowledge`. The promise of `DriftSettings.false_alarm` is made anew at each restart, so
    k restarts without drift have k chances of a false alarm.
    """

    def __init__(
        self,
        references: Mapping[str, Mapping[str, Reference]],
        settings: DriftSettings | None = None,
        dimensions: Mapping[str, Dimension] = DIMENSIONS,
    ) -> None:
        """`references` are by adapter and probe, the model itself being the adapter with the empty name.

        Scores without a reference are not watched. `dimensions` name what traffic is divided by, and how to tell a
        request's stratum. Raises `CalibrationError` for settings that cannot be kept.
        """
        self._references = references
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
        watched = self._probes.get(decision.model or "", {})
        for name, score in verdict.scores.items():
            probe = watched.get(name)
            if probe is not None:
                probe.add(score, strata)

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
        probes = [probe for adapter in self._probes.values() for probe in adapter.values()]
        return DriftSnapshot(
            decisions=self._decisions,
            given_up=self._given_up,
            scores=[each for probe in probes for each in probe.drift()],
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
            probes={
                adapter: {name: probe.state() for name, probe in probes.items()}
                for adapter, probes in self._probes.items()
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
        for adapter, probes in self._probes.items():
            for name, probe in probes.items():
                saved = state.probes.get(adapter, {}).get(name)
                if saved and not probe.restore(saved):
                    logger.warning("drift of probe %s starts anew: its reference or the allowance changed", name)

    def _begin(self) -> None:
        settings, among = self._settings, sum(map(len, self._references.values()))
        self._decisions = self._given_up = 0
        self._strata = {name: Strata(settings.most_strata) for name in self._dimensions}
        self._flagged: dict[tuple[str, str], list[int]] = {}
        self._probes = {
            adapter: {
                name: WatchedProbe(adapter, name, reference, list(self._dimensions), settings, among)
                for name, reference in references.items()
            }
            for adapter, references in self._references.items()
        }
        self._flags = Cusum(self._design(self._usual_flags))
        self._unscored = Cusum(self._design(settings.unscored_rate))

    def _design(self, usual: float) -> Design:
        # A rate that is high already cannot double: halfway to all of the traffic, then.
        shifted = min(usual * self._settings.rate_shift, (1.0 + usual) / 2)
        return Design.of(usual, shifted, self._settings.run_length)
