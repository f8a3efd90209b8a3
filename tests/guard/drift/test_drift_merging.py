"""Several processes' states, merged, are that of one process that saw all of their traffic."""

import numpy as np
import pytest

from guard.drift.merging import merge
from guard.drift.settings import DriftSettings
from tests.guard.drift.traffic import decision, quiet, sink


def fed(decisions, settings=None):
    """A sink's state after these decisions."""
    target = sink(settings) if settings else sink()
    for each in decisions:
        target.record(each)
    return target.state()


def shown(state):
    """What a sink shows that takes on a state."""
    target = sink()
    target.restore(state)
    return target.snapshot()


def test_counts_evidence_and_intervals_are_those_of_one_process():
    """2,000 decisions over three processes: e-values to rounding, counts and flags exactly."""
    made = quiet(np.random.default_rng(1), 2000)
    merged, whole = shown(merge([fed(made[each::3]) for each in range(3)])), shown(fed(made))
    assert (merged.decisions, merged.flags.share, merged.flagged) == (2000, whole.flags.share, whole.flagged)
    assert [(each.probe, each.stratum) for each in merged.scores] == [
        (each.probe, each.stratum) for each in whole.scores
    ]
    for one, all_together in zip(merged.scores, whole.scores, strict=True):
        assert one.evidence.count == all_together.evidence.count
        assert one.evidence.e_value == pytest.approx(all_together.evidence.e_value)


def test_means_of_strata_add_up():
    """Two processes with a baseline each, then a tenant that rises by one: half a point of the mean, all its own."""
    rng = np.random.default_rng(2)
    risen = [
        [decision(rng.normal(1.0 if at % 2 else 0.0), tenant="ab"[at % 2]) for at in range(2000)] for _ in range(2)
    ]
    states = [fed(quiet(rng, 500, tenants=("a", "b")) + each) for each in risen]
    (by_tenant,) = (each for each in shown(merge(states)).moved if (each.probe, each.dimension) == ("harm", "tenant"))
    assert by_tenant.shift == pytest.approx(0.5, abs=5 * by_tenant.noise)
    assert by_tenant.contributions[0].name == "b"


def test_an_alarm_of_one_process_stands():
    """One of two saw the drift, the other none."""
    rng = np.random.default_rng(3)
    loud = fed([decision(rng.normal(3.0)) for _ in range(200)])
    assert shown(merge([loud, fed(quiet(rng, 2000))])).drifted


def test_e_detectors_add_up():
    """The merged one is the sum: each is at most, on average, the number of its own requests."""
    rng = np.random.default_rng(4)
    states = [fed(quiet(rng, 700)) for _ in range(2)]
    apart = [shown(state).scores[0].evidence.detector for state in states]
    assert shown(merge(states)).scores[0].evidence.detector == pytest.approx(sum(apart))


def test_one_state_is_itself_and_none_is_refused():
    """Nor do states add up that were made against other references or with other rates."""
    state = fed(quiet(np.random.default_rng(5), 50))
    assert merge([state]) == state
    with pytest.raises(ValueError, match="no state"):
        merge([])
    with pytest.raises(ValueError, match="references"):
        merge([state, fed([], DriftSettings(run_length=100_000.0, allowance=0.1))])
    with pytest.raises(ValueError, match="designs"):
        merge([state, fed([], DriftSettings(run_length=100_000.0, flag_rate=0.1))])
