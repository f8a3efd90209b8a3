"""Several processes' states made one, where that is sound.

Traffic is spread over processes, and each has a sink. What adds up: counts, sums of scores, and bettors' logarithms of
wealth, since the wealth after all scores does not depend on whose came first. E-detectors add up too: each one's mean
is at most the number of its own requests, so their sum's is at most the number of all. A merged state therefore keeps
the promises of one sink that saw all of the traffic at the moment of merging.

What does not add up: a CUSUM depends on the order of events. The merged one shows the highest level, and the run length
holds for each process alone: n processes have n times as many false alarms. The largest e-value of the whole traffic
between merges is not known, so the merged one is its value now. An alarm of any process stands in the merged state. It
has that process's false-alarm probability, so n processes that each raise alarms have n chances.
"""

from collections.abc import Sequence
from functools import reduce

import numpy as np

from guard.drift.state import (
    BinsState,
    CusumState,
    MeansState,
    NoveltyState,
    ProbeState,
    SinkState,
    StreamState,
    TestState,
)


def merge(states: Sequence[SinkState]) -> SinkState:
    """Return one state for all of `states`, which sinks with equal references and settings made.

    Raises `ValueError` for no states, and where they do not fit together.
    """
    if not states:
        raise ValueError("there is no state to merge")
    return reduce(_sinks, states)


def _sinks(one: SinkState, two: SinkState) -> SinkState:
    return SinkState(
        decisions=one.decisions + two.decisions,
        given_up=one.given_up + two.given_up,
        strata={
            name: sorted({*one.strata.get(name, ()), *two.strata.get(name, ())}) for name in one.strata | two.strata
        },
        probes=_adapters(one.probes, two.probes),
        open=_adapters(one.open, two.open),
        novelty={
            adapter: _novelties(one.novelty.get(adapter, {}), two.novelty.get(adapter, {}))
            for adapter in one.novelty | two.novelty
        },
        flags=_cusums(one.flags, two.flags),
        unscored=_cusums(one.unscored, two.unscored),
        flagged={
            name: _flags(one.flagged.get(name, {}), two.flagged.get(name, {})) for name in one.flagged | two.flagged
        },
    )


def _flags(one: dict[str, tuple[int, int]], two: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    sums = {name: np.add(one.get(name, (0, 0)), two.get(name, (0, 0))).tolist() for name in one | two}
    return {name: (hits, count) for name, (hits, count) in sums.items()}


def _adapters(
    one: dict[str, dict[str, ProbeState]], two: dict[str, dict[str, ProbeState]]
) -> dict[str, dict[str, ProbeState]]:
    return {adapter: _probes(one.get(adapter, {}), two.get(adapter, {})) for adapter in one | two}


def _novelties(one: dict[str, NoveltyState], two: dict[str, NoveltyState]) -> dict[str, NoveltyState]:
    return one | two | {name: _novelty(one[name], two[name]) for name in one.keys() & two.keys()}


def _novelty(one: NoveltyState, two: NoveltyState) -> NoveltyState:
    if one.against != two.against:
        raise ValueError("states against different references do not add up")
    return NoveltyState(
        against=one.against,
        hits=one.hits + two.hits,
        count=one.count + two.count,
        test=_tests(one.test, two.test),
        recent=_bins(one.recent, two.recent),
    )


def _probes(one: dict[str, ProbeState], two: dict[str, ProbeState]) -> dict[str, ProbeState]:
    both = {name: _probe(one[name], two[name]) for name in one.keys() & two.keys()}
    return one | two | both


def _probe(one: ProbeState, two: ProbeState) -> ProbeState:
    if one.against != two.against:
        raise ValueError("states against different references do not add up")
    streams = {
        dimension: _streams(one.streams.get(dimension, {}), two.streams.get(dimension, {}))
        for dimension in one.streams | two.streams
    }
    means = (
        one.means
        | two.means
        | {name: _means(one.means[name], two.means[name]) for name in one.means.keys() & two.means.keys()}
    )
    return ProbeState(against=one.against, streams=streams, means=means)


def _streams(one: dict[str, StreamState], two: dict[str, StreamState]) -> dict[str, StreamState]:
    both = {
        name: StreamState(test=_tests(one[name].test, two[name].test), recent=_bins(one[name].recent, two[name].recent))
        for name in one.keys() & two.keys()
    }
    return one | two | both


def _tests(one: TestState, two: TestState) -> TestState:
    log_wealth = np.add(one.log_wealth, two.log_wealth)
    now = float(np.exp(np.minimum(log_wealth, 500.0)).mean())
    return TestState(
        count=one.count + two.count,
        largest=max(now, 1.0),
        alarm_at=_first(one.alarm_at, two.alarm_at),
        detector_alarm_at=_first(one.detector_alarm_at, two.detector_alarm_at),
        log_wealth=log_wealth.tolist(),
        sums=np.add(one.sums, two.sums).tolist(),
    )


def _bins(one: BinsState, two: BinsState) -> BinsState:
    return BinsState(weights=np.add(one.weights, two.weights).tolist(), squares=one.squares + two.squares)


def _means(one: MeansState, two: MeansState) -> MeansState:
    none = (0.0, 0.0, 0.0, 0.0)
    sums = {
        name: np.add(one.groups.get(name, none), two.groups.get(name, none)).tolist()
        for name in one.groups | two.groups
    }
    return MeansState(seen=one.seen + two.seen, groups={name: (a, b, c, d) for name, (a, b, c, d) in sums.items()})


def _cusums(one: CusumState, two: CusumState) -> CusumState:
    if (one.steps, one.limit) != (two.steps, two.limit):
        raise ValueError("CUSUMs of different designs do not add up")
    return CusumState(
        steps=one.steps,
        limit=one.limit,
        level=max(one.level, two.level),
        count=one.count + two.count,
        events=one.events + two.events,
        alarm_at=_first(one.alarm_at, two.alarm_at),
    )


def _first(*alarms: int | None) -> int | None:
    raised = [at for at in alarms if at is not None]
    return min(raised, default=None)
