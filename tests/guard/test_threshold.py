"""The threshold's promise: its false-positive rate stays below the target with the stated confidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm

from guard.threshold import (
    Threshold,
    allowed_exceedances,
    certify,
    certify_band,
    certify_strata,
    minimum_negatives,
)
from probes.errors import CalibrationError, TooFewNegatives


@pytest.mark.parametrize(
    ("num_negatives", "target_fpr", "allowed"),
    [
        *[(n, 0.05, m) for n, m in ((300, 8), (500, 16), (1000, 38), (2000, 83), (3000, 130), (10000, 463))],
        *[(n, 0.01, m) for n, m in ((300, 0), (500, 1), (1000, 4), (2000, 12), (5000, 38), (10000, 83))],
        *[(n, 0.001, m) for n, m in ((3000, 0), (5000, 1), (10000, 4), (50000, 38))],
    ],
)
def test_allowed_exceedances_are_those_of_the_exact_binomial_table(num_negatives, target_fpr, allowed):
    """The published table of the order-statistic rule at 95 % confidence is reproduced."""
    assert allowed_exceedances(num_negatives, target_fpr) == allowed


@pytest.mark.parametrize(("target_fpr", "needed"), [(0.05, 59), (0.01, 299), (0.005, 598), (0.001, 2995)])
def test_minimum_sample_is_exact(target_fpr, needed):
    """One benign prompt fewer than the minimum is refused, and the refusal says how many are needed."""
    assert minimum_negatives(target_fpr) == needed
    assert allowed_exceedances(needed, target_fpr) == 0
    with pytest.raises(TooFewNegatives, match=f"at least {needed}"):
        certify(np.zeros(needed - 1), target_fpr)


@given(
    num_negatives=st.integers(300, 20_000),
    target_fpr=st.floats(0.01, 0.3),
    confidence=st.floats(0.5, 0.95),
)
def test_clopper_pearson_agrees(num_negatives, target_fpr, confidence):
    """The one-sided Clopper-Pearson bound (a beta quantile) is below the target for m exceedances, above it for m +
    1.
    """
    allowed = allowed_exceedances(num_negatives, target_fpr, confidence)
    bound = beta.ppf(confidence, [allowed + 1, allowed + 2], [num_negatives - allowed, num_negatives - allowed - 1])
    assert bound[0] <= target_fpr + 1e-9
    assert bound[1] > target_fpr - 1e-9


def test_promise_holds_in_simulation():
    """Over 2,000 draws of 500 benign scores, the true rate exceeds 1 % in at most about 5 % of them."""
    rng = np.random.default_rng(0)
    thresholds = [certify(rng.uniform(size=500), 0.01).value for _ in range(2000)]
    violations = np.mean([1.0 - value > 0.01 for value in thresholds])
    assert 0.02 < violations <= 0.05


def test_ties_stay_on_the_safe_side():
    """Where many benign scores are equal, none of them is flagged beyond what is allowed."""
    scores = np.r_[np.zeros(900), np.ones(100)]
    threshold = certify(scores, 0.01)
    assert (scores > threshold.value).sum() <= threshold.allowed_exceedances
    assert threshold == Threshold(1.0, 0.01, 0.95, 1000, 4)


def test_order_of_scores_does_not_matter():
    """Exactly the allowed number of distinct benign scores lies above the value."""
    scores = np.random.default_rng(1).permutation(1000).astype(np.float32)
    threshold = certify(scores, 0.01)
    assert (scores > threshold.value).sum() == 4 == threshold.allowed_exceedances


@pytest.mark.parametrize(
    ("target_fpr", "confidence", "field"),
    [(0.0, 0.95, "target_fpr"), (1.5, 0.95, "target_fpr"), (0.1, 1.0, "confidence")],
)
def test_rates_outside_the_unit_interval_are_refused(target_fpr, confidence, field):
    """The error names the argument that is wrong."""
    with pytest.raises(CalibrationError) as caught:
        certify(np.zeros(1000), target_fpr, confidence)
    assert caught.value.field == field


def test_scores_that_are_not_numbers_are_refused():
    """A NaN would sort to the top and hide in the tail."""
    with pytest.raises(CalibrationError, match="NaN"):
        certify([0.0, float("nan")] * 1000, 0.01)


def test_every_stratum_keeps_the_rate_where_a_pooled_cut_does_not():
    """Over 300 samples of three strata, one of which scores higher, some stratum exceeds 5 % in at most 5 % of them.

    Three standard errors of 300 draws at 5 % are 3.8 points. The pooled cut fails the high stratum nearly always.
    """
    rng, shifts = np.random.default_rng(7), {"short": 0.0, "long": 0.4, "turns": 1.0}
    failures = pooled_failures = 0
    for _ in range(300):
        parts = {name: rng.normal(shift, 1.0, 400) for name, shift in shifts.items()}
        scores, labels = np.concatenate(list(parts.values())), np.repeat(list(parts), 400)
        cut = certify_strata(scores, labels, 0.05).threshold.value
        failures += any(norm.sf(cut - shift) > 0.05 for shift in shifts.values())
        pooled_failures += norm.sf(certify(scores, 0.05).value - shifts["turns"]) > 0.05
    assert failures / 300 <= 0.05 + 0.038
    assert pooled_failures / 300 > 0.95


def test_one_stratum_is_the_plain_rule():
    """Nothing is paid for strata that are not there."""
    scores = np.random.default_rng(8).normal(size=500)
    assert certify_strata(scores, ["all"] * 500, 0.01).threshold == certify(scores, 0.01)


def test_a_stratum_that_is_too_small_is_named_and_not_promised():
    """The others are certified as if it were not there; at 1 % and two strata each needs 367."""
    scores, labels = np.random.default_rng(9).normal(size=1010), np.repeat(["a", "b", "c"], [500, 500, 10])
    found = certify_strata(scores, labels, 0.01)
    assert found.too_small == {"c": 10}
    assert found.needed == minimum_negatives(0.01, 0.975) == 368
    assert set(found.strata) == {"a", "b"}
    assert found.threshold.value == max(threshold.value for threshold in found.strata.values())


def test_strata_may_be_numbers_and_must_be_as_many_as_scores():
    """Labels are compared as text; a sample and labels of different length are refused by name."""
    scores = np.random.default_rng(10).normal(size=1000)
    assert set(certify_strata(scores, np.repeat([1, 2], 500), 0.01).strata) == {"1", "2"}
    with pytest.raises(CalibrationError, match="999 strata for 1000"):
        certify_strata(scores, ["a"] * 999, 0.01)


def test_no_stratum_large_enough_is_refused():
    """With the number that one would need."""
    with pytest.raises(TooFewNegatives, match="150 benign prompts") as caught:
        certify_strata(np.zeros(250), np.repeat(["a", "b"], [150, 100]), 0.01)
    assert "299" in caught.value.remedy


def test_a_band_takes_a_larger_sample_than_either_of_its_ends():
    """Each end is certified at 97.5 %: 3,687 benign prompts are refused for 0.1 %, 3,688 are enough."""
    assert minimum_negatives(0.001, 0.975) == 3688
    with pytest.raises(TooFewNegatives, match="at least 3688"):
        certify_band(np.zeros(3687), ["all"] * 3687, 0.001, 0.01)
    band = certify_band(np.arange(3688.0), ["all"] * 3688, 0.001, 0.01)
    assert band.block.threshold == certify(np.arange(3688.0), 0.001, 0.975)
    assert band.flag.threshold == certify(np.arange(3688.0), 0.01, 0.975)


@pytest.mark.parametrize(("block", "flag"), [(0.01, 0.01), (0.05, 0.01)])
def test_a_band_upside_down_is_refused(block, flag):
    """What is blocked counts as flagged too, so its rate must be the lower one."""
    with pytest.raises(CalibrationError, match="not less") as caught:
        certify_band(np.zeros(5000), ["all"] * 5000, block, flag)
    assert caught.value.field == "block_fpr"


def test_a_stratum_that_only_the_flag_can_speak_of_does_not_turn_the_band_over():
    """The small stratum scores highest: the flag's cut rises above the large one's block cut, and takes it along."""
    scores = np.r_[np.random.default_rng(11).normal(size=4000), np.full(400, 50.0)]
    band = certify_band(scores, ["large"] * 4000 + ["small"] * 400, 0.002, 0.02)
    assert band.block.too_small == {"small": 400}
    assert band.flag.threshold.value == 50.0 == band.block.threshold.value


@given(
    scores=st.lists(st.integers(-3, 3), min_size=150, max_size=400),
    rates=st.tuples(st.floats(0.03, 0.2), st.floats(0.03, 0.2)).filter(lambda pair: pair[0] < pair[1]),
)
def test_bands_of_tied_scores_stay_on_the_safe_side(scores, rates):
    """However few the distinct scores, neither end lets more of the sample through than allowed, and their order
    holds.
    """
    band = certify_band(scores, ["all"] * len(scores), *rates)
    for end in (band.block.threshold, band.flag.threshold):
        assert (np.array(scores) > end.value).sum() <= end.allowed_exceedances
    assert band.flag.threshold.value <= band.block.threshold.value
