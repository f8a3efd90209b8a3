"""Learn then Test: p-values are what they say, levels are never spent twice, and a refusal says what would help."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from guard.learn_then_test import Risk, explain, learn_then_test, needed_sample, p_values
from probes.errors import CalibrationError


def risk(name, limit, count, *hits):
    """A risk of 0/1 losses by how many of `count` prompts each configuration lost."""
    return Risk(name, limit, np.array(hits) / count, count, is_binary=True)


@given(count=st.integers(1, 5000), share=st.floats(0, 1), limit=st.floats(0.001, 0.5))
def test_binary_p_values_are_the_exact_binomial_test(count, share, limit):
    """The one-sided test of scipy agrees, whatever the rounding of the mean."""
    hits = int(share * count)
    expected = binomtest(hits, count, limit, alternative="less").pvalue
    assert p_values([hits / count], count, limit)[0] == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(count=st.integers(1, 3000), mean=st.floats(0, 1), limit=st.floats(0.001, 0.9))
def test_bounded_p_values_never_undercut_the_exact_one(count, mean, limit):
    """What holds for every loss in [0, 1] holds for 0/1 losses: the bound is no less than the exact test of the same
    mean.
    """
    hits = math.ceil(mean * count - 1e-9)
    bounded = p_values([hits / count], count, limit, is_binary=False)[0]
    assert 0 <= bounded <= 1
    assert bounded >= p_values([hits / count], count, limit)[0] * (1 - 1e-9)


def test_hoeffding_bentkus_by_hand():
    """Of 100 losses at limit 0.2, a mean of 0.18 gets its bound from Hoeffding, one of 0.1 from Bentkus, one of 0.3
    none.
    """
    entropy = 0.18 * math.log(0.18 / 0.2) + 0.82 * math.log(0.82 / 0.8)
    bentkus = math.e * binomtest(10, 100, 0.2, alternative="less").pvalue
    found = p_values([0.18, 0.1, 0.3, 0.0], 100, 0.2, is_binary=False)
    assert found == pytest.approx([math.exp(-100 * entropy), bentkus, 1.0, 0.8**100], rel=1e-9)


def test_a_configuration_is_as_good_as_its_worst_risk():
    """The first keeps one limit only, the second both."""
    risks = [risk("block", 0.01, 1000, 0, 2), risk("miss", 0.2, 200, 60, 20)]
    assert learn_then_test(risks).tolist() == [False, True]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1, 0, 0, 0], [True, True, False, False]),  # a sequence stops at the first failure
        (None, [True, True, False, False]),  # 0.0125 each: 0.02 is within what it inherits, 0.03 after a failure is not
        ([0.25, 0, 0, 0.75], [True, False, False, True]),  # nor is 0.02 within 0.0125 alone; 0.03 is within 0.0375
    ],
)
def test_levels_are_handed_on_and_never_spent_twice(shares, expected):
    """With p-values of 0.01, 0.02, 0.9 and 0.03 in this order, what a failed one had is lost."""
    assert learn_then_test([_FixedRisk([0.01, 0.02, 0.9, 0.03])], 0.95, shares=shares).tolist() == expected


def test_a_failure_ends_a_fixed_sequence_and_not_the_fallback():
    """0.9 first: the sequence certifies nothing, the fallback what passes its own share; in another order, so does
    it.
    """
    risks = [_FixedRisk([0.9, 0.001, 0.001])]
    assert not learn_then_test(risks, shares=[1, 0, 0]).any()
    assert learn_then_test(risks, shares=[0.5, 0.25, 0.25]).tolist() == [False, True, True]
    assert learn_then_test(risks, shares=[1, 0, 0], order=[1, 2, 0]).tolist() == [False, True, True]


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=30))
def test_the_fallback_certifies_all_that_bonferroni_would(found):
    """With even shares; and one configuration alone is tested at the whole level."""
    even = learn_then_test([_FixedRisk(found)])
    assert (even >= (np.array(found) <= 0.05 / len(found) * (1 - 1e-12))).all()
    if len(found) == 1:
        assert even[0] == (found[0] <= 1 - 0.95)


@pytest.mark.parametrize("shares", [[0.6, 0.6], [1.5, -0.5]])
def test_more_than_the_whole_error_is_never_spent(shares):
    """Shares that add up to more than 1, or only by one that is negative, are an error of the caller."""
    with pytest.raises(ValueError, match="shares"):
        learn_then_test([_FixedRisk([0.01, 0.01])], shares=shares)


class _FixedRisk:
    """A risk whose p-values are given."""

    def __init__(self, found):
        self.p_values = np.array(found)


def test_a_limit_that_too_few_prompts_can_show_is_named_with_the_number_needed():
    """No hit in 1,000 says nothing of 0.1 % at level 0.025; 3,688 would."""
    error = explain([risk("block", 0.001, 1000, 0, 0), risk("miss", 0.2, 500, 10, 20)], 0.025)
    assert error.field == "block"
    assert "0 % of 1000" in error.problem
    assert "3688" in error.remedy


def test_a_limit_that_no_sample_would_show_is_named():
    """At best 40 % are missed: 20 % is out of reach, however many prompts."""
    error = explain([risk("block", 0.01, 3000, 0, 5), risk("miss", 0.2, 500, 200, 300)], 0.025)
    assert error.field == "miss"
    assert "40 %" in error.problem
    assert "no larger sample" in error.problem


def test_limits_that_exclude_each_other_are_named_together():
    """Each can be kept alone; where blocks are few, misses are many."""
    error = explain([risk("flag", 0.01, 3000, 0, 900), risk("miss", 0.2, 500, 300, 10)], 0.025)
    assert "where" in error.problem
    assert {"flag", "miss"} <= {error.field, *error.problem.split()}


@given(mean=st.floats(0, 0.3), limit=st.floats(0.01, 0.4), binary=st.booleans())
def test_the_sample_that_is_advised_would_do(mean, limit, binary):
    """And where none is, the mean is not below the limit by more than a trifle."""
    needed = needed_sample(mean, limit, 0.025, is_binary=binary)
    if needed is None:
        assert mean > limit * 0.98
    else:
        seen = math.ceil(mean * needed - 1e-9) / needed
        assert p_values([seen], needed, limit, is_binary=binary)[0] <= 0.025


@pytest.mark.parametrize(
    ("limit", "count", "words"), [(0.0, 5, "between 0 and 1"), (1.0, 5, "between"), (0.1, 0, "no prompts")]
)
def test_what_is_no_risk_is_refused(limit, count, words):
    """A limit outside 0 to 1, an empty sample."""
    with pytest.raises(CalibrationError, match=words) as caught:
        Risk("miss", limit, np.zeros(1), count, is_binary=True)
    assert caught.value.field == "miss"
