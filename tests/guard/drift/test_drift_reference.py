"""References say of benign traffic only what a finite sample can bear."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from guard.drift.bets import Bets
from guard.drift.reference import Reference, cell_of, references
from probes.errors import CalibrationError

DRAWS = 1000
finite = st.floats(-100, 100, allow_nan=False)


def test_the_bounds_of_all_cuts_hold_together():
    """Over 1,000 draws, at 90 % confidence, at most a tenth have a cut with more benign traffic beyond it than said.

    The scores are continuous, the case in which bounds are tightest, and the true shares are known.
    """
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(DRAWS):
        cuts = Reference.of(rng.normal(size=200), confidence=0.9).cuts
        broken += any((norm.sf if cut.above else norm.cdf)(cut.value) > cut.most for cut in cuts)
    assert 0 < broken <= binom.ppf(0.999, DRAWS, 0.1)


def test_the_bounds_hold_for_tied_scores():
    """A probe that is silent on nineteen of twenty prompts, and otherwise on a grid of halves: the same promise."""
    rng, broken = np.random.default_rng(2), 0

    def draw(size):
        return np.where(rng.random(size) < 0.95, -9.0, np.round(2 * rng.normal(size=size)) / 2)

    population = np.sort(draw(400_000))
    for _ in range(300):
        for cut in Reference.of(draw(500), confidence=0.9).cuts:
            side = "right" if cut.above else "left"
            below = np.searchsorted(population, cut.value, side) / len(population)
            if (1 - below if cut.above else below) > cut.most:
                broken += 1
                break
    assert broken <= binom.ppf(0.999, 300, 0.1)


def test_a_bound_is_the_exact_binomial_one():
    """Above the 90 % quantile of 1,000 scores lie 100: Clopper and Pearson's bound at a twelfth of 1 %."""
    reference = Reference.of(np.arange(1000.0), confidence=0.99)
    cut = next(each for each in reference.cuts if each.above and each.value == 899.0)
    exact = binomtest(100, 1000).proportion_ci(1 - 2 * 0.01 / 12, method="exact")
    assert cut.most == pytest.approx(exact.high, rel=1e-9)


def test_bins_have_equal_mass():
    """1,000 scores in 20 bins: 50 in each."""
    assert Reference.of(np.random.default_rng(0).normal(size=1000)).counts == (50,) * 20


def test_a_tied_value_has_a_bin_of_its_own():
    """Scores beside the value that nineteen of twenty share are in other bins, on either side."""
    reference = Reference.of([-9.0] * 950 + list(np.linspace(-8, 3, 50)))
    own = reference.bin_of(-9.0)
    assert reference.counts[own] == 950
    assert reference.bin_of(-9.01) < own < reference.bin_of(-8.9)


def test_a_constant_reference_tells_its_value_from_all_others():
    """A probe that always says the same: any other score is in another bin, and beyond a cut."""
    reference = Reference.of([2.5] * 300)
    assert len({reference.bin_of(score) for score in (2.4, 2.5, 2.6)}) == 3
    assert {(cut.value, cut.above) for cut in reference.cuts} == {(2.5, True), (2.5, False)}
    assert Bets.against(reference, 0.0).num_cuts == 2


@pytest.mark.parametrize("size", [1, 2, 7])
def test_few_scores_make_a_reference_that_says_little(size):
    """A handful of scores: few bins, loose bounds, and nothing to bet on rather than a bet that is not covered."""
    reference = Reference.of(np.arange(float(size)))
    assert sum(reference.counts) == size
    assert len(reference.counts) <= max(1, size // 5) + 2
    assert all(cut.most > 0.6 for cut in reference.cuts)
    assert Bets.against(reference, 0.02).num_cuts <= len(reference.cuts)


def test_one_score_is_nothing_to_bet_on():
    """Each cut may have nearly everything beyond it, so no bettor begins."""
    bets = Bets.against(Reference.of([0.0]), 0.02)
    assert bets.num_cuts == 0
    assert not bets.log_growth.any()


@pytest.mark.parametrize("scores", [[], [0.0, np.nan], [np.inf, 1.0]])
def test_scores_that_are_none_are_refused(scores):
    """With the field that is wrong."""
    with pytest.raises(CalibrationError, match="benign_scores"):
        Reference.of(scores)


def test_references_of_several_probes_share_the_error_probability():
    """Two probes at 99 % together: each at 99.5 %."""
    found = references(["harm", "refusal"], np.random.default_rng(0).normal(size=(100, 2)))
    assert list(found) == ["harm", "refusal"]
    assert found["harm"].confidence == pytest.approx(0.995)
    with pytest.raises(CalibrationError, match="not of 3 probes"):
        references(["a", "b", "c"], np.zeros((100, 2)))


@given(st.lists(finite, min_size=1, max_size=60), finite)
def test_every_score_has_one_bin_and_one_cell(scores, score):
    """Bins count each benign score once, and cells tell exactly whether a score is above, at or below each cut."""
    reference = Reference.of(scores)
    assert sum(reference.counts) == len(scores)
    assert 0 <= reference.bin_of(score) < len(reference.counts)
    values, cell = reference.values, cell_of(reference.values, score)
    for index, value in enumerate(values):
        assert (cell > 2 * index + 1) == (score > value)
        assert (cell < 2 * index + 1) == (score < value)


@given(st.lists(finite, min_size=20, max_size=80), st.floats(0, 0.5))
def test_no_bettor_expects_to_gain_where_the_null_holds(scores, allowance):
    """Where the chance beyond a cut is just what is tolerated, the expected factor is 1. It falls with the chance."""
    reference = Reference.of(scores, confidence=0.5)
    bets, values = Bets.against(reference, allowance), reference.values
    column = 0
    for cut in reference.cuts:
        tolerated = (1 - allowance) * cut.most + allowance
        if tolerated > 0.98:
            continue
        own = 2 * values.index(cut.value) + 1
        hit, miss = (own + 1, own) if cut.above else (own - 1, own)
        for _ in range(3):
            factor = np.exp(bets.log_growth[[hit, miss], column])
            expected = tolerated * factor[0] + (1 - tolerated) * factor[1]
            assert expected == pytest.approx(1.0)
            assert factor[0] > 1 > factor[1]
            column += 1
    assert column == (bets.log_growth.shape[1] if bets.num_cuts else 0)
