"""The confidence sequence covers at every look at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from guard.drift.interval import share

RUNS, ALPHA = 300, 0.1
LOOKS = np.unique(np.geomspace(1, 3000, 40).astype(int))


def missed(chances, rng):
    """Whether the interval is ever off the mean chance so far."""
    hits = np.cumsum(rng.random(len(chances)) < chances)
    means = np.cumsum(chances) / np.arange(1, len(chances) + 1)
    found = ((share(int(hits[at - 1]), int(at), ALPHA), means[at - 1]) for at in LOOKS)
    return any(not each.low <= mean <= each.high for each, mean in found)


@pytest.mark.parametrize("chance", [0.01, 0.3])
def test_a_share_that_stays_is_covered(chance):
    """Over 300 runs with 40 looks each, at most a tenth ever miss it, up to a binomial's 99.9 % quantile."""
    rng = np.random.default_rng(1)
    broken = sum(missed(np.full(LOOKS[-1], chance), rng) for _ in range(RUNS))
    assert broken <= binom.ppf(0.999, RUNS, ALPHA)


def test_a_share_that_wanders_is_covered_on_average():
    """Each request has a chance of its own, in waves: the interval covers their mean so far, with the same promise."""
    rng = np.random.default_rng(2)
    chances = 0.1 + 0.09 * np.sin(np.arange(LOOKS[-1]) / 50)
    assert sum(missed(chances, rng) for _ in range(RUNS)) <= binom.ppf(0.999, RUNS, ALPHA)


def test_a_fixed_sample_interval_would_fail_here():
    """Clopper and Pearson's interval, looked at 40 times, is off in more runs than it may be."""
    rng, broken = np.random.default_rng(3), 0
    for _ in range(100):
        hits = np.cumsum(rng.random(LOOKS[-1]) < 0.3)
        limits = (binomtest(int(hits[at - 1]), int(at)).proportion_ci(1 - ALPHA) for at in LOOKS)
        broken += any(not each.low <= 0.3 <= each.high for each in limits)
    assert broken > binom.ppf(0.999, 100, ALPHA)


@given(st.integers(1, 5000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_it_is_wider_than_a_single_look_and_mirrors(sample):
    """Whatever was seen: it holds the share, and the exact interval for one look; misses are covered likewise."""
    hits, count = sample
    found, mirrored = share(hits, count), share(count - hits, count)
    once = binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low <= once.low + 1e-9
    assert found.high >= once.high - 1e-9
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_it_narrows():
    """2 % of a million requests: within two tenths of a percentage point."""
    found = share(20_000, 1_000_000)
    assert found.low < 0.02 < found.high
    assert found.high - found.low < 0.002


def test_nothing_seen_is_nothing_known():
    """No request: from 0 to 1; and impossible counts are refused."""
    assert (share(0, 0).low, share(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        share(3, 2)
