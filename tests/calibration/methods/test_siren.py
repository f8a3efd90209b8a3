"""SIREN: few features of several blocks, read together by a perceptron, as a probe like any other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from recorded import training_set
from tiny import make_prompts

from calibration.evaluation.unseen.contenders import recorded_scores
from calibration.fitting.fitted import load_fitted, save_fitted
from calibration.methods.classifiers.siren import fit_siren, most_of_the_weight
from calibration.methods.classifiers.weak_classifiers import fit_perceptron


@pytest.fixture
def found(planted_chat, tmp_path):
    """The planted model's recorded prompts, and the probe, read back from its file."""
    training = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    save_fitted(fit_siren(training), tmp_path / "f.safetensors")
    [probe] = load_fitted(tmp_path / "f.safetensors").probes
    return training, probe


def test_it_finds_what_was_planted_by_a_few_features(found):
    """It separates selection prompts as served, from a part of the features of every block."""
    training, probe = found
    harmful = training.harmful[training.select]
    scores = recorded_scores(training, probe)[training.select]
    assert scores[harmful].min() > scores[~harmful].max()
    assert probe.spec.readout.over == "content"
    read = (probe.weight != 0).any(dim=1)
    assert 0 < int(read.sum()) == probe.spec.evidence["features"] < read.numel() / 2


def test_features_of_no_importance_are_not_read():
    """A feature that alone tells the classes apart, at importance near 0 under a penalty, loses to one that counts."""
    rng = np.random.default_rng(0)
    harmful = rng.random(400) < 0.5
    features = np.stack([harmful + rng.normal(0, 0.01, 400), harmful + rng.normal(0, 0.3, 400)], axis=1)
    fitted = fit_perceptron(features.astype(np.float32), harmful, 8, 10.0, np.array([1e-6, 1.0]))
    shifted = features.astype(np.float32)
    shifted[:, 0] = 1 - shifted[:, 0]
    assert np.abs(fitted(shifted) - fitted(features.astype(np.float32))).max() < 0.01


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-5, 5).map(lambda value: round(value, 3))),
    st.floats(0.05, 0.99),
)
def test_the_fewest_features_make_up_the_share(weight, share):
    """What is kept makes up the share, and without its smallest it would not."""
    kept = most_of_the_weight(weight, share)
    size, total = np.abs(weight[kept]), np.abs(weight).sum()
    if total == 0:
        assert len(kept) == 0
        return
    assert size.sum() >= share * total - 1e-9
    assert size.sum() - size.min() <= share * total + 1e-9
