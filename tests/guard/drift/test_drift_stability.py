"""The stability index is the usual one, and its noise is told apart from drift."""

import numpy as np
import pytest
from scipy.stats import binom, entropy

from guard.drift.reference import Reference
from guard.drift.stability import RecentBins, stability

RUNS = 1000


def counted(reference, scores):
    """Counts of `scores` by bin."""
    return np.bincount([reference.bin_of(score) for score in scores], minlength=len(reference.counts)).tolist()


def test_the_index_is_the_sum_of_both_relative_entropies():
    """As scipy has them, half a score being added to each bin."""
    reference = Reference.of(np.arange(100.0), num_bins=4)
    found = stability(reference, [10, 20, 30, 40], 100)
    p, q = np.array([10.5, 20.5, 30.5, 40.5]), np.full(4, 25.5)
    assert found.psi == pytest.approx(entropy(p, q) + entropy(q, p))
    assert found.noise == pytest.approx(3 * (1 / 100 + 1 / 100))


@pytest.mark.parametrize("count", [100, 500, 2000])
def test_without_drift_the_index_is_noise(count):
    """1,000 references and fresh scores: the mean is the noise floor, and at most 1 % of looks speak of drift."""
    rng, found = np.random.default_rng(count), []
    for _ in range(RUNS):
        reference = Reference.of(rng.normal(size=1000))
        found.append(stability(reference, counted(reference, rng.normal(size=count)), count))
    assert np.mean([each.psi for each in found]) == pytest.approx(found[0].noise, rel=0.1)
    assert sum(each.beyond > 0 for each in found) <= binom.ppf(0.999, RUNS, 0.01)
    assert sum(each.band != "stable" for each in found) <= binom.ppf(0.999, RUNS, 0.01)


def test_small_samples_that_look_like_drift_are_not_called_so():
    """30 scores have an index above 0.25 nearly always: the usual bands would call each of them a major shift."""
    rng = np.random.default_rng(3)
    reference = Reference.of(rng.normal(size=1000))
    found = [stability(reference, counted(reference, rng.normal(size=30)), 30) for _ in range(100)]
    assert np.mean([each.psi > 0.25 for each in found]) > 0.8
    assert {each.band for each in found} == {"too few"}


@pytest.mark.parametrize(("shift", "band"), [(0.0, "stable"), (0.4, "moderate"), (0.8, "major")])
def test_bands(shift, band):
    """PSI of a normal shift by s is about s squared: 0.16 is moderate, 0.64 is major."""
    rng = np.random.default_rng(4)
    reference = Reference.of(rng.normal(size=5000))
    assert stability(reference, counted(reference, rng.normal(shift, 1.0, 5000)), 5000).band == band


def test_old_scores_are_forgotten():
    """Ten windows after a change, what was before it has no weight left; the weights are worth the window."""
    bins = RecentBins(2, 100)
    for _ in range(1000):
        bins.add(0)
    for _ in range(1000):
        bins.add(1)
    assert bins.weights[0] / sum(bins.weights) < 1e-6
    assert bins.effective_count == pytest.approx(100, rel=1e-3)


def test_few_scores_are_worth_themselves():
    """Ten scores of a window of 10,000 are worth ten."""
    bins = RecentBins(2, 10_000)
    for index in [0, 1] * 5:
        bins.add(index)
    assert bins.effective_count == pytest.approx(10, rel=1e-3)


def test_weights_never_overflow():
    """A short window and 200,000 scores: finite, and still worth the window."""
    bins = RecentBins(3, 3)
    for at in range(200_000):
        bins.add(at % 3)
    assert bins.effective_count == pytest.approx(3)


def test_nothing_yet_is_too_few():
    """No score: no index, and no division by zero."""
    reference = Reference.of(np.arange(100.0))
    empty = RecentBins(len(reference.counts), 10)
    found = stability(reference, empty.weights, empty.effective_count)
    assert (found.psi, found.band) == (0.0, "too few")
    with pytest.raises(ValueError, match="bins"):
        stability(reference, [1.0], 1)
