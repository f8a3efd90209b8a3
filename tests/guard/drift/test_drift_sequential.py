"""The sequential test keeps its false-alarm promises, and sees what is planted."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from guard.drift.bets import Bets
from guard.drift.reference import Cut, Reference, cell_of
from guard.drift.sequential import SequentialTest

RUNS, REQUESTS, ALPHA = 300, 2000, 0.1


def known(*levels):
    """A reference whose bounds are the true shares of standard normal scores: the null holds with nothing to spare."""
    cuts = tuple(
        Cut(float(norm.ppf(level)), above, float(1 - level if above else level))
        for level in levels
        for above in (False, True)
    )
    return replace(Reference.of(np.zeros(10)), cuts=cuts)


def after(reference, scores, *, allowance=0.0, e_limit=1 / ALPHA, detector_limit=1e9):
    """A test that took in `scores`."""
    test = SequentialTest(Bets.against(reference, allowance), e_limit, detector_limit)
    for score in scores:
        test.add(cell_of(reference.values, score))
    return test


def far_above(rng, count, share):
    """Benign scores of which a share is far above all others, as an adversary would have it."""
    return np.where(rng.random(count) < share, 50.0, rng.normal(size=count))


def test_the_e_process_keeps_its_promise_where_the_null_is_only_just_true():
    """True shares known, the whole allowance spent at the top: at most a tenth of runs ever reach 1 / 0.1, and some do.

    Of 300, at most the 99.9 % quantile of a binomial.
    """
    rng, reference = np.random.default_rng(1), known(0.05, 0.5, 0.95)
    scores = (far_above(rng, REQUESTS, 0.05) for _ in range(RUNS))
    alarms = sum(after(reference, each, allowance=0.05).evidence().alarm_at is not None for each in scores)
    assert 0 < alarms <= binom.ppf(0.999, RUNS, ALPHA)


def test_a_test_that_took_the_reference_at_its_word_would_fail_here():
    """With 100 benign scores, bounds that are the sample's own shares raise far too many alarms; ours do not."""
    rng, naive, ours = np.random.default_rng(2), 0, 0
    for _ in range(100):
        sample = rng.normal(size=100)
        reference = Reference.of(sample, confidence=0.95)
        shares = tuple(
            replace(cut, most=float(np.mean(sample > cut.value if cut.above else sample < cut.value)) or 0.01)
            for cut in reference.cuts
        )
        scores = rng.normal(size=REQUESTS)
        naive += after(replace(reference, cuts=shares), scores).evidence().alarm_at is not None
        ours += after(reference, scores).evidence().alarm_at is not None
    assert naive > 50
    assert ours <= binom.ppf(0.999, 100, ALPHA + 0.05)


def test_the_e_detector_runs_as_long_as_promised():
    """True shares known: 300 runs to a false alarm take 200 requests or more on average, up to four standard errors."""
    rng, reference = np.random.default_rng(3), known(0.1, 0.5, 0.9)
    lengths = []
    for _ in range(RUNS):
        at = None
        test = SequentialTest(Bets.against(reference, 0.0), 1e9, 200.0)
        while at is None:
            for score in rng.normal(size=32):
                test.add(cell_of(reference.values, score))
            at = test.evidence().detector_alarm_at
        lengths.append(at)
    assert np.mean(lengths) + 4 * np.std(lengths) / np.sqrt(RUNS) >= 200


def test_the_e_detector_sees_a_late_change_that_the_e_process_has_no_wealth_left_for():
    """After 20,000 quiet requests, scores rise by one standard deviation: a hundred requests, against thousands."""
    rng = np.random.default_rng(4)
    reference = Reference.of(rng.normal(size=1000))
    scores = np.concatenate([rng.normal(size=20_000), rng.normal(1.0, 1.0, 1000)])
    evidence = after(reference, scores, allowance=0.02, e_limit=100.0, detector_limit=1e6).evidence()
    assert evidence.alarm_at is None
    assert 20_000 < evidence.detector_alarm_at < 20_200


@pytest.mark.parametrize("drift", [(1.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (0.0, 0.3)])
def test_any_direction_is_seen(drift):
    """Higher, lower, wider and narrower scores each raise the alarm within 500 requests."""
    rng = np.random.default_rng(5)
    reference = Reference.of(rng.normal(size=2000))
    evidence = after(reference, rng.normal(*drift, 500), allowance=0.02, e_limit=100.0).evidence()
    assert evidence.alarm_at is not None


def test_an_allowance_is_not_drift_and_more_than_it_is():
    """5 % of attacks under an allowance of 5 % raise no alarm in 20,000 requests; 15 % do at once."""
    rng = np.random.default_rng(6)
    reference = Reference.of(rng.normal(size=2000))
    quiet = after(reference, far_above(rng, 20_000, 0.05), allowance=0.05, e_limit=100.0).evidence()
    loud = after(reference, far_above(rng, 1000, 0.15), allowance=0.05, e_limit=100.0).evidence()
    assert quiet.alarm_at is None
    assert loud.alarm_at is not None


def one_by_one(bets, cells, e_limit, detector_limit):
    """What the docstrings say, spelt out: wealth, sums of later starts, and the first alarms."""
    wealth, sums = np.ones(bets.log_growth.shape[1]), np.zeros(bets.log_growth.shape[1])
    alarms, largest = [None, None], 1.0
    for at, cell in enumerate(cells, start=1):
        factor = np.exp(bets.log_growth[cell])
        wealth, sums = wealth * factor, (sums + 1) * factor
        largest = max(largest, wealth.mean())
        for which, reached in enumerate((wealth.mean() >= e_limit, sums.mean() >= detector_limit)):
            if reached and alarms[which] is None:
                alarms[which] = at
    return wealth.mean(), largest, sums.mean(), *alarms


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-4, 4), max_size=150), st.sets(st.integers(0, 150)))
def test_settling_together_changes_nothing(scores, looks):
    """Whenever one looks, the evidence is that of going one by one, and alarms stand at the exact score."""
    reference = Reference.of(np.random.default_rng(7).normal(size=400))
    bets, cells = Bets.against(reference, 0.01), [cell_of(reference.values, score) for score in scores]
    test = SequentialTest(bets, 5.0, 50.0)
    for at, cell in enumerate(cells):
        if at in looks:
            test.evidence()
        test.add(cell)
    found, wanted = test.evidence(), one_by_one(bets, cells, 5.0, 50.0)
    assert found.count == len(scores)
    assert (found.e_value, found.largest_e_value, found.detector) == pytest.approx(wanted[:3])
    assert (found.alarm_at, found.detector_alarm_at) == wanted[3:]


def test_evidence_beyond_measure_is_a_number():
    """100,000 scores far out: no overflow, no warning, and the alarm stays where it was."""
    reference = Reference.of(np.random.default_rng(8).normal(size=500))
    evidence = after(reference, [9.0] * 100_000, detector_limit=1e6).evidence()
    assert np.isfinite([evidence.e_value, evidence.largest_e_value, evidence.detector]).all()
    assert evidence.alarm_at < 20
    assert evidence.drifted


def test_a_test_goes_on_where_it_was_saved():
    """Saved in the middle and restored into a new one, it ends as if never stopped."""
    rng = np.random.default_rng(9)
    reference = Reference.of(rng.normal(size=500))
    scores = rng.normal(0.2, 1.0, 777)
    whole = after(reference, scores)
    again = after(reference, [])
    again.restore(after(reference, scores[:401]).state())
    for score in scores[401:]:
        again.add(cell_of(reference.values, score))
    assert again.evidence().count == 777
    assert again.evidence().e_value == pytest.approx(whole.evidence().e_value)
    assert again.evidence().detector == pytest.approx(whole.evidence().detector)
    with pytest.raises(ValueError, match="bettors"):
        after(known(0.5), []).restore(whole.state())
