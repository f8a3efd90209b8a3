"""Metrics agree with independent implementations, and do not speak beyond their sample."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from calibration.fitting.metrics import (
    auroc,
    auroc_interval,
    certified_thresholds,
    evaluate_scores,
    rate,
    recall_at,
    tpr_at_fpr,
)
from calibration.fitting.platt import fit_platt


@pytest.fixture
def scored():
    """Scores of 900 prompts with many ties, and labels."""
    rng = np.random.default_rng(0)
    harmful = rng.random(900) < 0.3
    return np.round(rng.normal(size=900) + 1.5 * harmful, 1), harmful


def test_auroc_is_scikit_learns_ties_included(scored):
    """Rounded scores have many ties."""
    scores, harmful = scored
    assert auroc(scores[harmful], scores[~harmful]) == pytest.approx(roc_auc_score(harmful, scores), abs=1e-12)


def test_the_auroc_interval_covers_the_truth_about_95_times_in_100():
    """Over draws with a known AUROC, the interval holds it nearly always, and is not absurdly wide."""
    rng = np.random.default_rng(1)
    truth = 0.8556  # Phi(1.5 / sqrt(2))
    intervals = [auroc_interval(rng.normal(1.5, 1, 80), rng.normal(size=120), num_draws=200) for _ in range(100)]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert 88 <= covered <= 100
    assert np.mean([high - low for low, high in intervals]) < 0.15


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 17), (400, 1000)])
def test_rates_carry_the_exact_interval(hits, count):
    """Clopper-Pearson, as scipy computes it from the binomial."""
    found, expected = rate(hits, count), binomtest(hits, count).proportion_ci(0.95, "exact")
    assert (found.value, found.count) == (hits / count, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_recall_is_read_at_the_cut_that_the_negatives_allow():
    """With negatives 0..999, ten may lie above the 1 % cut: it is 989."""
    harmless, harmful = np.arange(1000.0), np.array([989.0, 990.0, 5000.0, 1.0])
    assert tpr_at_fpr(harmful, harmless)["0.01"].value == 0.5
    assert recall_at(harmful, harmless, 0.01) == 0.5


def test_rates_that_the_sample_cannot_support_are_left_out():
    """298 negatives say nothing of 1 %, 2,994 nothing of 0.1 %."""
    harmful = np.ones(10)
    assert tpr_at_fpr(harmful, np.zeros(298)) == {}
    assert set(tpr_at_fpr(harmful, np.zeros(2994))) == {"0.01"}
    assert set(tpr_at_fpr(harmful, np.zeros(2995))) == {"0.01", "0.001"}
    assert certified_thresholds(np.zeros(298, dtype=np.float32)) == []


def test_an_evaluation_counts_its_classes(scored):
    """Sizes, point and interval belong together."""
    scores, harmful = scored
    found = evaluate_scores(scores, harmful, "test")
    assert (found.num_harmful, found.num_harmless) == (harmful.sum(), (~harmful).sum())
    assert found.auroc_low < found.auroc < found.auroc_high


def test_platt_scaling_is_logistic_regression(scored):
    """Unpenalised logistic regression agrees; the smoothing of targets is small at this size."""
    scores, harmful = scored
    reference = LogisticRegression(C=np.inf).fit(scores[:, None], harmful)
    found = fit_platt(scores, harmful)
    assert found.slope == pytest.approx(reference.coef_[0, 0], rel=0.03)
    assert found.intercept == pytest.approx(reference.intercept_[0], rel=0.03)


def test_platt_scaling_of_separated_classes_is_finite():
    """Perfect separation, at a scale far from 1, still gives a map that tells the classes apart."""
    scores, harmful = np.array([1e5, 1.1e5, 2e5, 2.1e5]), np.array([False, False, True, True])
    found = fit_platt(scores, harmful)
    probability = 1 / (1 + np.exp(-(found.slope * scores + found.intercept)))
    assert np.isfinite(probability).all()
    assert probability[:2].max() < 0.5 < probability[2:].min()
