"""Probabilities are judged by what they say, at the prevalence that they are for, ties and chance included."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from calibration.evaluation.reliability import equal_bins, expected_calibration_error, reliability
from calibration.fitting.platt import fit_platt
from calibration.report.evidence import SplitScores
from calibration.report.figures import reliability_points
from probes.errors import CalibrationError
from probes.manifest import Platt

TRUE = Platt(slope=1.0, intercept=0.0, prevalence=0.5)


def drawn(rng, count, *, share=0.5):
    """Scores whose log-odds of harm are exactly themselves at even shares: N(1, sqrt 2) if harmful, N(-1, sqrt 2) if
    not.
    """
    harmful = rng.random(count) < share
    return rng.normal(np.where(harmful, 1.0, -1.0), math.sqrt(2.0)), harmful


def test_a_true_map_stays_within_chance():
    """Over 100 samples, the ECE of the true map exceeds what chance allows in about 5, and Brier's interval holds
    true.
    """
    rng = np.random.default_rng(0)
    scores, harmful = drawn(rng, 400_000)
    truth = brier_score_loss(harmful, 1 / (1 + np.exp(-scores)))
    found = [reliability(*drawn(rng, 400), TRUE)[0] for _ in range(100)]
    assert sum(each.ece.value > each.ece_by_chance for each in found) <= 13
    assert sum(each.brier.low <= truth <= each.brier.high for each in found) >= 87


def test_a_map_that_is_too_sure_is_found_out():
    """Doubling log-odds is far beyond chance, and worse by Brier's score."""
    rng = np.random.default_rng(1)
    scores, harmful = drawn(rng, 3000)
    true, sure = (reliability(scores, harmful, each)[0] for each in (TRUE, TRUE.model_copy(update={"slope": 3.0})))
    assert sure.ece.low > sure.ece_by_chance
    assert sure.brier.low > true.brier.value
    assert true.brier.value == pytest.approx(brier_score_loss(harmful, 1 / (1 + np.exp(-scores))))


def test_prevalence_shift_mends_what_another_share_of_harm_broke():
    """At 5 % harmful instead of 50 %, the map as calibrated is far off; moved to 5 % it is within chance again."""
    scores, harmful = drawn(np.random.default_rng(2), 5000, share=0.05)
    as_calibrated, moved = reliability(scores, harmful, TRUE)
    assert (as_calibrated.prevalence, moved.prevalence) == (0.5, pytest.approx(harmful.mean()))
    assert as_calibrated.ece.low > 5 * as_calibrated.ece_by_chance
    assert moved.ece.value < moved.ece_by_chance
    assert moved.brier.high < as_calibrated.brier.low


def test_a_fitted_map_knows_its_prevalence_and_moves_to_the_true_one():
    """Fitted at 20 %, moved to 1 %: the map that Bayes' rule gives, for shares that fitting never saw."""
    rng = np.random.default_rng(3)
    scores, harmful = drawn(rng, 200_000, share=0.2)
    fitted = fit_platt(scores, harmful)
    assert fitted.prevalence == harmful.mean()
    moved = fitted.at(0.01)
    assert moved.slope == pytest.approx(1.0, abs=0.03)
    assert moved.intercept == pytest.approx(math.log(0.01 / 0.99), abs=0.05)


shares = st.floats(1e-6, 1 - 1e-6)


@given(start=shares, end=shares, score=st.floats(-30, 30))
def test_moving_there_and_back_changes_nothing(start, end, score):
    """And more harm in the traffic never makes a prompt less likely to be harmful."""
    platt = Platt(slope=1.5, intercept=-0.5, prevalence=start)
    moved = platt.at(end)
    assert moved.at(start).intercept == pytest.approx(platt.intercept, abs=1e-9)
    assert 0.0 <= moved.probability(score) <= 1.0
    assert (moved.probability(score) >= platt.probability(score)) or end < start
    assert platt.probability(score) == pytest.approx(1 / (1 + math.exp(-(1.5 * score - 0.5))), rel=1e-9)


@pytest.mark.parametrize(
    ("platt", "prevalence", "words"),
    [
        (TRUE, 0.0, "between 0 and 1"),
        (TRUE, 1.0, "between 0 and 1"),
        (Platt(slope=1, intercept=0), 0.1, "does not say"),
    ],
)
def test_prevalences_that_cannot_be_used(platt, prevalence, words):
    """A share that is none, and a map of unknown origin."""
    with pytest.raises(CalibrationError, match=words):
        platt.at(prevalence)


def test_no_map_no_reliability():
    """Nor one that does not say what it was fitted at."""
    scores, harmful = drawn(np.random.default_rng(4), 50)
    assert reliability(scores, harmful, None) == ()
    assert reliability(scores, harmful, Platt(slope=1.0, intercept=0.0)) == ()


def test_bins_are_equal_and_keep_ties_together():
    """A thousand distinct values make ten hundreds; a value that half of all prompts share is in one bin."""
    distinct = np.random.default_rng(5).permutation(1000).astype(float)
    assert np.bincount(equal_bins(distinct, 10)).tolist() == pytest.approx([100] * 10, abs=1)
    tied = np.r_[np.zeros(500), np.arange(1, 501)]
    assert len(set(equal_bins(tied, 10)[:500])) == 1


def test_one_prediction_for_all_is_judged_as_one():
    """If every prompt gets the prevalence, the ECE is 0 and the figure has one point, on the diagonal."""
    harmful = np.repeat([False, True], [300, 100])
    assert expected_calibration_error(np.full(400, 0.25), harmful) == pytest.approx(0.0, abs=1e-12)
    split = SplitScores(harmful=(0.0,) * 100, harmless=(0.0,) * 300)
    predicted, observed, _, _ = reliability_points(split, Platt(slope=1.0, intercept=math.log(1 / 3)))
    assert predicted == pytest.approx([0.25])
    assert observed == pytest.approx([0.25])
