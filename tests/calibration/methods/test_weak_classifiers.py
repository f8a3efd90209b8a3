"""The support vector machine and the perceptron give scikit-learn's own numbers, folded into what serving knows."""

import numpy as np
import pytest
import torch
from recorded import training_set
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tiny import make_prompts

from calibration.evaluation.unseen.contenders import recorded_scores
from calibration.fitting.fitted import load_fitted, save_fitted
from calibration.methods.classifiers.weak_classifiers import fit_perceptron, fit_svm, fit_weak_classifiers


@pytest.fixture
def ring():
    """Harmful points inside a ring of harmless ones, in a large offset: no line tells them apart."""
    rng = np.random.default_rng(0)
    harmful = rng.random(600) < 0.5
    angle, radius = rng.uniform(0, 2 * np.pi, 600), np.where(harmful, 1.0, 3.0) + rng.normal(0, 0.2, 600)
    features = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.ones(600)], axis=1)
    return (features + 50).astype(np.float32), harmful


def test_the_svm_fold_is_scikit_learns_pipeline(ring):
    """Standardisation folded into weight and bias gives the pipeline's decision function; a constant column does no
    harm.
    """
    features, harmful = ring
    reference = make_pipeline(StandardScaler(), LinearSVC(C=0.01, class_weight="balanced", dual=False))
    exact = features.astype(np.float64)
    expected = reference.fit(exact, harmful).decision_function(exact)
    np.testing.assert_allclose(fit_svm(features, harmful)(features), expected, atol=1e-4)


def test_the_perceptron_fold_is_scikit_learns_pipeline(ring):
    """Its logit is the log-odds of the pipeline's probability, and it sees what a line does not."""
    features, harmful = ring
    reference = make_pipeline(
        StandardScaler(), MLPClassifier((100,), alpha=0.01, learning_rate_init=0.01, max_iter=300, random_state=20_260)
    )
    exact = features.astype(np.float64)
    reference.fit(exact, harmful)
    found = fit_perceptron(features, harmful)(features)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), reference.predict_proba(exact)[:, 1], atol=1e-4)
    assert ((found > 0) == harmful).mean() > 0.99
    assert ((fit_svm(features, harmful)(features) > 0) == harmful).mean() < 0.7


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's recorded prompts."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


def test_probes_read_the_last_token_and_survive_their_file(training, tmp_path):
    """As saved and scored by what serves, both separate the selection prompts; the perceptron has a hundred
    channels.
    """
    found = fit_weak_classifiers(training)
    save_fitted(found, tmp_path / "f.safetensors")
    probes = {probe.spec.name: probe for probe in load_fitted(tmp_path / "f.safetensors").probes}
    assert set(probes) == {"svm", "mlp"}
    assert (probes["mlp"].spec.channels, probes["mlp"].spec.head) == (100, "mlp")
    harmful = training.harmful[training.select]
    for probe in probes.values():
        assert (probe.spec.readout.kind, probe.spec.readout.offset) == ("last", 0)
        scores = recorded_scores(training, probe)[training.select]
        assert scores[harmful].min() > scores[~harmful].max()
        assert torch.isfinite(probe.weight).all()


def test_the_study_has_every_kind_at_every_block_beside_words(training):
    """Four kinds, as many points as blocks, accuracy and AUROC; words alone are a line of their own and explain the
    plant.
    """
    (study,) = fit_weak_classifiers(training).studies
    accuracy, area = study.charts
    kinds = ["svm", "logistic", "lda", "mlp"]
    assert [series.name for series in accuracy.series] == kinds
    assert [series.name for series in area.series] == [*kinds, "words alone"]
    assert all(len(series.y) == training.chat.num_layers for chart in study.charts for series in chart.series)
    assert min(value for series in accuracy.series for value in series.y) > 0.95
    assert f"Fitted on {len(training.fit)} prompts and measured on {len(training.select)}" in study.finding


def test_a_block_that_knows_nothing_is_not_chosen(training, monkeypatch):
    """With noise recorded for all blocks but one, both probes read that one."""
    original = type(training).features

    def features(self, layer, where):
        real = original(self, layer, where)
        return real if layer == 1 else np.random.default_rng(layer).normal(size=real.shape).astype(np.float32)

    monkeypatch.setattr(type(training), "features", features)
    found = fit_weak_classifiers(training)
    assert [probe.spec.layers for probe in found.probes] == [(1,), (1,)]
    accuracy = {series.name: series.y for series in found.studies[0].charts[0].series}
    assert all(abs(values[0] - 0.5) < 0.25 < values[1] - 0.5 for values in accuracy.values())
