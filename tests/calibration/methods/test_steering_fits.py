"""Every steering fit against an answer that is known: planted, by another formula, or by the paper's own long form."""

import numpy as np
import pytest
import torch
from recorded import training_set
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from sklearn.decomposition import PCA
from tiny import make_prompts

from calibration.methods.steering.additive import nearest
from calibration.methods.steering.angular import plane
from calibration.methods.steering.conditional import pairwise_component
from calibration.methods.steering.contrast import find_contrast
from calibration.methods.steering.gaussian import nearest_of_rank, transport
from calibration.methods.steering.linear_act import sorted_regression
from calibration.methods.steering.null_space import gate_weight, null_projector
from calibration.methods.steering.vectors import fit_steering
from probes.steering import displacement, moves_of

FAMILIES = {
    "actadd": ("add", None),
    "caa": ("add", None),
    "centred": ("add", None),
    "mean_match": ("add", None),
    "gaussian": ("low_rank", None),
    "linear_act": ("affine", None),
    "cast": ("add", "hard"),
    "gated": ("add", "hard"),
    "alpha": ("add", "soft"),
    "turn": ("rotate", None),
    "turn_gated": ("rotate", "hard"),
}


def gaussian(seed, count, dimension, spread=1.0, mean=0.0):
    """Correlated normal samples."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimension, dimension)) * spread
    return rng.normal(size=(count, dimension)) @ mixing + mean


@pytest.fixture(scope="module")
def fitted(tokenizer, tmp_path_factory):
    """The planted model's contrast and what every family fitted on it."""
    from tiny import make_model, plant_refusal

    from calibration.model.chat_model import ChatModel

    model = make_model(len(tokenizer), seed=1)
    direction = plant_refusal(model, tokenizer)
    chat = ChatModel.wrap(model, tokenizer)
    training = training_set(chat, tmp_path_factory.mktemp("steering"), make_prompts(240, 0))
    return find_contrast(training), fit_steering(training), direction


def moved(steering, streams):
    """Streams `[N, D]` after the vector acted once."""
    ((_, move),) = moves_of(steering.spec, steering.tensors).items()
    rows = torch.from_numpy(streams).float()
    return (rows + displacement(rows, torch.ones(len(rows), 1), [move])).double().numpy()


def test_every_family_steers_along_the_planted_refusal(fitted):
    """Each vector is of its kind, and pushes refused prompts' opposite along the direction that makes the model
    refuse.
    """
    contrast, found, direction = fitted
    assert {each.spec.name: (each.spec.operator, each.spec.gate) for each in found.steering} == FAMILIES
    answered, refused = contrast.streams(contrast.answered), contrast.streams(contrast.refused)
    for each in found.steering:
        streams = refused if each.spec.gate else answered
        shift = torch.from_numpy((moved(each, streams) - streams).mean(axis=0)).float()
        assert shift @ direction > 0, each.spec.name
        if each.spec.operator == "add":
            # Prompts that are alike differ little in harm, so what else they differ in weighs more.
            least = 0.7 if each.spec.name in ("actadd", "caa", "cast") else 0.95
            assert torch.cosine_similarity(shift, direction, dim=0) > least, each.spec.name


def test_gates_open_for_harm_and_not_for_the_rest(fitted):
    """Gated vectors leave harmless prompts where they are, but for 1 %, and move harmful ones; and act at one
    position.
    """
    contrast, found, _ = fitted
    training = contrast.training
    for each in found.steering:
        if each.spec.gate == "hard":
            harmless, harmful = (contrast.labelled(training.select, harmful=label) for label in (False, True))
            still = np.abs(moved(each, harmless) - harmless).max(axis=1) < 1e-6
            assert (~still).mean() <= 0.01
            assert (np.abs(moved(each, harmful) - harmful).max(axis=1) > 0.1).mean() > 0.9
        assert each.spec.schedule == ((1.0, 0.0) if each.spec.gate else ())


def test_mean_matching_carries_mean_to_mean(fitted):
    """`mean_match`, `gaussian` and `linear_act` put the mean of what is answered on the mean of what is refused."""
    contrast, found, _ = fitted
    answered, refused = contrast.streams(contrast.answered), contrast.streams(contrast.refused)
    for name in ("mean_match", "gaussian", "linear_act"):
        each = next(item for item in found.steering if item.spec.name == name)
        np.testing.assert_allclose(moved(each, answered).mean(axis=0), refused.mean(axis=0), atol=2e-3)


def test_a_model_that_does_not_refuse_gets_no_steering(tokenizer, tmp_path):
    """Without refusals there is nothing to steer towards: a note, and no error."""
    from tiny import make_model

    from calibration.model.chat_model import ChatModel

    model = make_model(len(tokenizer), seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(0)
    found = fit_steering(training_set(ChatModel.wrap(model, tokenizer), tmp_path, make_prompts(120, 0)))
    assert not found.steering
    assert found.notes[0].startswith("no steering was fitted")


def test_the_gaussian_map_is_the_textbook_one():
    """Against scipy's matrix square root; the mapped source has the target's covariance, and the matrix is
    symmetric.
    """
    source, target = (np.cov(gaussian(seed, 4000, 6).T) for seed in (0, 1))
    found = transport(source, target)
    root = sqrtm(source).real
    inverse = np.linalg.inv(root)
    np.testing.assert_allclose(found, inverse @ sqrtm(root @ target @ root).real @ inverse, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found @ source @ found.T, target, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found, found.T, atol=1e-8)


def test_the_truncated_map_is_the_best_of_its_rank():
    """At full rank it is the map; below, no random or gradient-made map of that rank has a smaller mean square
    error.
    """
    covariance = np.cov(gaussian(2, 3000, 7).T)
    matrix = np.random.default_rng(3).normal(size=(7, 7))

    def error(product):
        gap = matrix - product
        return float(np.trace(gap @ covariance @ gap.T))

    down, up, kept = nearest_of_rank(matrix, covariance, 7)
    assert error(up.T @ down) < 1e-8 * error(np.zeros((7, 7)))
    assert kept == pytest.approx(1)
    down, up, kept = nearest_of_rank(matrix, covariance, 2)
    assert kept == pytest.approx(1 - error(up.T @ down) / error(np.zeros((7, 7))))
    rival_up, rival_down = (torch.randn(2, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([rival_up, rival_down], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        gap = torch.from_numpy(matrix) - rival_up.T @ rival_down
        value = torch.trace(gap @ torch.from_numpy(covariance) @ gap.T)
        value.backward()
        return value

    optimizer.step(loss)
    assert error(up.T @ down) <= loss().item() * (1 + 1e-6)


def test_linear_act_is_optimal_among_lines():
    """By coordinate it is NumPy's least-squares line through the sorted samples, brings them nearer, is exact on
    lines.
    """
    rng = np.random.default_rng(4)
    source, target = rng.gamma(2.0, size=(500, 3)), rng.normal(2.0, 3.0, size=(500, 3))
    scale, shift = sorted_regression(source, target)
    for column in range(3):
        best = np.polyfit(np.sort(source[:, column]), np.sort(target[:, column]), 1)
        np.testing.assert_allclose([scale[column], shift[column]], best, rtol=1e-6)
        own = wasserstein_distance(scale[column] * source[:, column] + shift[column], target[:, column])
        assert own < wasserstein_distance(source[:, column], target[:, column])
    exact, offset = sorted_regression(source, 1.7 * source[::-1] - 4)
    np.testing.assert_allclose(exact, 1.7)
    np.testing.assert_allclose(offset, -4, atol=1e-9)


def test_linear_act_with_unequal_samples_and_a_dead_coordinate():
    """Quantiles stand in for sorted samples, and a coordinate that never varies is only shifted."""
    rng = np.random.default_rng(5)
    source, target = rng.normal(size=(4000, 2)), rng.normal(1.0, 2.0, size=(900, 2))
    source[:, 1] = 3.0
    scale, shift = sorted_regression(source, target)
    assert scale[0] == pytest.approx(2.0, rel=0.1)
    assert scale[1] == 1.0
    assert 3.0 + shift[1] == pytest.approx(target[:, 1].mean(), abs=0.05)


def test_the_pairwise_component_is_sklearn_s():
    """PCA of pairwise-centred states, by scikit-learn on the stacked states; the sign is the majority's."""
    rng = np.random.default_rng(6)
    axis = np.eye(5)[2]
    negative = rng.normal(size=(60, 5)) * 3
    positive = negative + 4 * axis + rng.normal(size=(60, 5)) * 0.3
    found = pairwise_component(positive, negative)
    middle = (positive + negative) / 2
    expected = PCA(1).fit(np.concatenate([positive - middle, negative - middle])).components_[0]
    assert abs(found @ expected) == pytest.approx(1)
    assert found @ axis > 0.98
    np.testing.assert_allclose(pairwise_component(negative, positive), -found, atol=1e-9)


def test_the_rank_one_gate_is_the_paper_s_matrix():
    """`r w^T` equals `R H^T P (P H H^T P + alpha P)^+ P`, solved whole with r repeated for every harmful activation."""
    rng = np.random.default_rng(7)
    harmless = rng.normal(size=(200, 12)) * np.linspace(0.01, 3, 12)
    harmful, refusal = rng.normal(size=(30, 12)) + 1, rng.normal(size=12)
    projector, ridge = null_projector(harmless, 0.5), 0.7
    repeated, states = np.repeat(refusal[:, None], 30, axis=1), harmful.T
    inner = projector @ states @ states.T @ projector.T + ridge * projector @ projector.T
    whole = repeated @ states.T @ projector.T @ np.linalg.pinv(inner) @ projector
    np.testing.assert_allclose(whole, np.outer(refusal, gate_weight(harmful, projector, ridge)), rtol=1e-6, atol=1e-9)


def test_the_null_space_gate_does_not_see_what_benign_prompts_have():
    """Where benign activations leave a space empty, the gate reads exactly nothing off them, and 1 off harmful ones."""
    rng = np.random.default_rng(8)
    harmless = np.concatenate([rng.normal(size=(300, 6)), np.zeros((300, 6))], axis=1)
    harmful = np.concatenate([rng.normal(size=(40, 6)), np.ones((40, 6))], axis=1)
    weight = gate_weight(harmful, null_projector(harmless, 0.5), 1e-6)
    assert np.abs(harmless @ weight).max() < 1e-9
    np.testing.assert_allclose(harmful @ weight, 1, atol=1e-6)


def test_the_plane_is_orthonormal_and_holds_the_feature():
    """b1 is the difference; b2 is the candidates' first component across it, by PCA about zero."""
    rng = np.random.default_rng(9)
    difference = rng.normal(size=8)
    candidates = np.outer(rng.normal(size=5), difference) + np.outer(rng.normal(size=5), np.eye(8)[3]) * 2
    first, second = plane(difference, candidates)
    np.testing.assert_allclose([first @ first, second @ second, first @ second], [1, 1, 0], atol=1e-9)
    assert first @ difference == pytest.approx(np.linalg.norm(difference))
    rest = np.eye(8)[3] - first[3] * first
    assert abs(second @ rest) == pytest.approx(np.linalg.norm(rest))


def test_pairs_share_their_words():
    """Each text goes with the one that is most like it."""
    partners, likeness = nearest(["paint the garden", "steal the bread"], ["bake the bread", "paint a garden", "sing"])
    assert partners.tolist() == [1, 0]
    assert (likeness > 0.2).all()
