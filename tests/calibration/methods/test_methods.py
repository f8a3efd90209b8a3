"""Methods find what was planted, and agree with scikit-learn."""

import numpy as np
import pytest
import torch
from recorded import training_set
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import HIDDEN, make_model, make_prompts

from calibration.fitting.fitted import Fitted, load_fitted, merge, save_fitted
from calibration.methods.classifiers.discriminant import fit_lda
from calibration.methods.classifiers.linear_classifiers import fit_classifiers, fit_logistic
from calibration.methods.classifiers.rolling import fit_rolling
from calibration.methods.directions.directions import difference_in_means, direction_probe
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.methods.tokens.token_level import score_rows
from calibration.methods.tokens.token_streams import read_streams
from calibration.model.chat_model import ChatModel
from calibration.prompts.template import read_template
from calibration.recording.places import content_positions, place_of
from probes.errors import CalibrationError


@pytest.fixture
def gaussians():
    """Two correlated clouds of 400 points in 24 dimensions, apart along a known direction, in a large offset."""
    rng = np.random.default_rng(0)
    harmful = rng.random(400) < 0.4
    direction = np.zeros(24)
    direction[3] = 3.0
    features = rng.normal(size=(400, 24)) @ np.diag(np.linspace(0.5, 2, 24)) + harmful[:, None] * direction + 50
    return features.astype(np.float32), harmful, direction


def test_difference_in_means_recovers_a_planted_direction():
    """With many prompts the cosine with the planted direction exceeds 0.99."""
    rng = np.random.default_rng(1)
    harmful = rng.random(20_000) < 0.5
    planted = rng.normal(size=48)
    features = (rng.normal(size=(20_000, 48)) + harmful[:, None] * planted).astype(np.float32)
    found = difference_in_means(features, harmful)
    assert found @ planted / np.linalg.norm(found) / np.linalg.norm(planted) > 0.99


def test_a_direction_probe_scores_log_odds(gaussians):
    """Its score is the log-likelihood ratio of the two classes' projections: zero half-way, rising towards harm."""
    features, harmful, direction = gaussians
    projection = features @ direction / np.linalg.norm(direction)
    probe = direction_probe("d", "planted", direction, projection, harmful, layer=0, offset=0, evidence={})
    scores = features @ probe.weight[0, 0].numpy() + probe.spec.bias
    assert scores[harmful].mean() == pytest.approx(-scores[~harmful].mean(), rel=1e-3)
    assert scores[harmful].mean() - scores[~harmful].mean() == pytest.approx(
        (harmful.mean() * scores[harmful].var() + (~harmful).mean() * scores[~harmful].var()), rel=1e-3
    )
    with pytest.raises(CalibrationError, match="does not separate"):
        direction_probe("d", "planted", -direction, -projection, harmful, layer=0, offset=0, evidence={})


def test_the_logistic_fold_is_scikit_learns_pipeline(gaussians):
    """Standardisation folded into weight and bias gives the pipeline's own decision function."""
    features, harmful, _ = gaussians
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))
    expected = reference.fit(features.astype(np.float64), harmful).decision_function(features.astype(np.float64))
    np.testing.assert_allclose(fit_logistic(features, harmful)(features), expected, atol=1e-4)


def test_a_feature_that_never_varies_is_harmless():
    """A constant column gives no division by zero."""
    features = np.ones((40, 3), dtype=np.float32)
    features[:20, 0] = -1
    assert np.isfinite(fit_logistic(features, np.arange(40) >= 20)(features)).all()


def test_lda_is_the_shrunk_fisher_discriminant(gaussians):
    """The weight is the inverse of the Ledoit-Wolf covariance times the difference in means, by an independent
    formula.
    """
    features, harmful, _ = gaussians
    exact = features.astype(np.float64)
    means = [exact[~harmful].mean(axis=0), exact[harmful].mean(axis=0)]
    covariance = np.zeros((24, 24))
    for mask, prior in ((~harmful, 0.5), (harmful, 0.5)):
        scale = exact[mask].std(axis=0)
        shrunk, _ = ledoit_wolf((exact[mask] - exact[mask].mean(axis=0)) / scale)
        covariance += prior * shrunk * np.outer(scale, scale)
    weight = np.linalg.solve(covariance, means[1] - means[0])
    chunks = np.array_split(np.arange(400), 7)
    found = fit_lda(lambda: ((features[rows], harmful[rows]) for rows in chunks))
    np.testing.assert_allclose(found.weight, weight, rtol=1e-4, atol=1e-6)
    assert found.bias == pytest.approx(-weight @ (means[0] + means[1]) / 2, rel=1e-4)


def test_the_planted_refusal_is_found_and_proved(planted, planted_chat, tmp_path):
    """The vector lies along what makes the model refuse; ablating it stops refusals, adding it brings them."""
    training = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    found = fit_refusal_direction(training)
    assert planted_chat.tokenizer.convert_ids_to_tokens(list(training.refusal_tokens)) == ["<refuse>"]
    vector, evidence = found.steering[0].vector[0], found.steering[0].spec.evidence
    assert torch.cosine_similarity(vector, planted.direction, dim=0) > 0.99
    assert evidence["baseline_harmful"] > 0 > evidence["baseline_harmless"]
    assert evidence["bypass"] < 0 < evidence["induce"]
    assert evidence["induce_served"] > 0
    assert evidence["kl"] < 0.1
    assert found.steering[0].spec.norm == pytest.approx(float(vector.norm()))
    assert found.probes[0].spec.layers[0] + 1 < 0.8 * planted_chat.num_layers


def test_the_harmfulness_direction_reads_the_instruction(planted, planted_chat, tmp_path):
    """Read at the instruction's last token, signed towards harm, along what was planted."""
    probe = fit_harmfulness_direction(training_set(planted_chat, tmp_path, make_prompts(240, 0))).probes[0]
    assert probe.spec.readout.offset == 2
    assert torch.cosine_similarity(probe.weight[0, 0], planted.direction, dim=0) > 0.98


def test_a_model_that_does_not_refuse_gets_no_refusal_direction(tokenizer, tmp_path):
    """A random model's first tokens know no refusal: there is a note instead of a vector, and no error."""
    model = make_model(len(tokenizer), seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(0)
    found = fit_refusal_direction(training_set(ChatModel.wrap(model, tokenizer), tmp_path, make_prompts(240, 0)))
    assert not found.probes
    assert not found.steering
    assert found.notes[0].startswith("no refusal direction")


def test_classifiers_give_the_logits_that_they_fitted(planted_chat, tmp_path):
    """Folded weights separate the selection prompts, and `stack` sums several blocks at one position."""
    training = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    probes = {probe.spec.name: probe for probe in fit_classifiers(training).probes}
    assert set(probes) == {"logistic", "lda", "stack", "pooled", "joint", "joint_pooled"}
    assert len(probes["stack"].spec.layers) > 1
    for probe in probes.values():
        where = place_of(probe.spec.readout)
        scores = probe.spec.bias + sum(
            training.features(layer, where) @ probe.weight[row, 0].numpy()
            for row, layer in enumerate(probe.spec.layers)
        )
        select, harmful = scores[training.select], training.harmful[training.select]
        assert select[harmful].min() > select[~harmful].max()


def test_rolling_reads_the_weights_of_pooled_by_its_worst_stretch(planted_chat, tmp_path):
    """Weights and bias are pooled's; the score is the highest mean of eight tokens of the content in a row."""
    training = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    pooled = next(probe for probe in fit_classifiers(training).probes if probe.spec.name == "pooled")
    (rolling,) = fit_rolling(training).probes
    assert torch.equal(rolling.weight, pooled.weight)
    assert (rolling.spec.bias, rolling.spec.layers) == (pooled.spec.bias, pooled.spec.layers)
    prompts = training.prompts.subset(np.arange(12))
    template = read_template(planted_chat.tokenizer)
    tokens = read_streams(planted_chat, prompts, rolling.spec.layers).token_scores(rolling.weight)
    for score, own, ids in zip(
        score_rows(training, [rolling], np.arange(12))[:, 0], tokens, prompts.token_ids, strict=True
    ):
        content = own[list(content_positions(template, ids)), 0]
        stretches = [content[start : start + 8].mean() for start in range(max(len(content) - 7, 1))]
        assert score == pytest.approx(max(stretches) + rolling.spec.bias, abs=1e-4)


def test_selection_prompts_are_apart_from_fitting_prompts(planted_chat, tmp_path):
    """The two parts are disjoint, cover all, hold both classes, and are the same each time."""
    training = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    assert sorted([*training.fit, *training.select]) == list(range(240))
    assert {bool(label) for label in training.harmful[training.select]} == {True, False}
    again = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    assert np.array_equal(training.fit, again.fit)


def test_what_is_found_survives_its_file(planted_chat, tmp_path):
    """Saved and read back, probes, vectors and notes are equal, also when there is nothing."""
    found = merge([fit_refusal_direction(training_set(planted_chat, tmp_path, make_prompts(240, 0)))])
    save_fitted(found, tmp_path / "f.safetensors")
    back = load_fitted(tmp_path / "f.safetensors")
    assert [probe.spec for probe in back.probes] == [probe.spec for probe in found.probes]
    assert torch.equal(back.steering[0].vector, found.steering[0].vector)
    assert found.probes[0].spec.evidence["cos_refusal"] == pytest.approx(1.0)
    assert found.probes[0].weight.shape == (1, 1, HIDDEN)
    none = Fitted(notes=("n",), not_asked={"a study": "why"})
    save_fitted(none, tmp_path / "n.safetensors")
    assert load_fitted(tmp_path / "n.safetensors") == merge([none]) == none
    save_fitted(merge([]), tmp_path / "g.safetensors")
    assert load_fitted(tmp_path / "g.safetensors") == merge([])
