"""Heads agree with their formulas and with independent implementations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from scipy.stats import multivariate_normal
from torch import nn

from probes.head import HEADS


def clouds(seed):
    """Benign points, and wider ones around another centre, with the head's tensors."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(4, 4)) + 2 * np.eye(4)
    benign, background = rng.normal(size=(400, 4)) @ mixing + 1, 3 * rng.normal(size=(400, 4)) - 1
    tensors = {
        "head_mean": benign.mean(0),
        "head_precision": np.linalg.inv(np.cov(benign.T)),
        "head_background_mean": background.mean(0),
        "head_background_precision": np.linalg.inv(np.cov(background.T)),
    }
    return benign, background, tensors


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_sum(values):
    """MultiMax and attention add up what their heads found."""
    assert HEADS["sum"].outputs(np.array(values), {}) == pytest.approx(sum(values), abs=1e-6)


@given(hidden=st.integers(1, 20), seed=st.integers(0, 99))
def test_mlp_is_torchs(hidden, seed):
    """With the first layer's products as values it is Linear, ReLU, Linear, but for the output's bias."""
    torch.manual_seed(seed)
    first, second = nn.Linear(8, hidden).double(), nn.Linear(hidden, 1).double()
    tokens = torch.randn(5, 8).double()
    with torch.no_grad():
        expected = (second(torch.relu(first(tokens))) - second.bias)[:, 0].numpy()
        values = (tokens @ first.weight.T).numpy()
        tensors = {"head_bias": first.bias.numpy(), "head_weight": second.weight[0].numpy()}
    np.testing.assert_allclose(HEADS["mlp"].outputs(values, tensors), expected, atol=1e-9)


@given(seed=st.integers(0, 99))
def test_mahalanobis_is_scipys_distance_relative_to_the_background(seed):
    """Squared distance from benign minus squared distance from the background."""
    benign, background, tensors = clouds(seed)
    points = np.concatenate([benign[:5], background[:5]])
    expected = [
        mahalanobis(point, tensors["head_mean"], tensors["head_precision"]) ** 2
        - mahalanobis(point, tensors["head_background_mean"], tensors["head_background_precision"]) ** 2
        for point in points
    ]
    np.testing.assert_allclose(HEADS["mahalanobis"].outputs(points, tensors), expected, rtol=1e-9, atol=1e-9)


def test_mahalanobis_is_a_likelihood_ratio():
    """It is twice the log of background over benign density, but for a constant; the further from benign, the
    larger.
    """
    benign, background, tensors = clouds(0)
    points = np.concatenate([benign[:20], background[:20]])
    density = {
        name: multivariate_normal(tensors[f"head_{name}mean"], np.linalg.inv(tensors[f"head_{name}precision"]))
        for name in ("", "background_")
    }
    ratio = 2 * (density["background_"].logpdf(points) - density[""].logpdf(points))
    found = HEADS["mahalanobis"].outputs(points, tensors)
    assert np.ptp(found - ratio) < 1e-8
    assert found[20:].mean() > found[:20].mean()


@pytest.mark.parametrize("kind", ["sum", "mlp", "mahalanobis"])
def test_a_value_that_is_missing_leaves_no_score(kind):
    """NaN in one value is NaN in the score: no ReLU, weight or matrix of zeros hides it."""
    tensors = {name: np.zeros(shape) for name, shape in HEADS[kind].shapes(3).items()}
    for place in range(3):
        values = np.full(3, -1.0)
        values[place] = np.nan
        assert np.isnan(HEADS[kind].outputs(values, tensors))


@pytest.mark.parametrize("kind", HEADS)
def test_a_graph_is_the_same_head(kind):
    """On tensors as on arrays."""
    rng = np.random.default_rng(3)
    values, tensors = (
        rng.normal(size=4),
        {name: rng.normal(size=shape) for name, shape in HEADS[kind].shapes(4).items()},
    )
    graph = HEADS[kind].graph(torch.tensor(values), {name: torch.tensor(each) for name, each in tensors.items()})
    assert float(graph) == pytest.approx(float(HEADS[kind].outputs(values, tensors)))
