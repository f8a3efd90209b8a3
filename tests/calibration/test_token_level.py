"""The token-level probe finds evidence wherever it stands."""

import numpy as np
import pytest
import torch
from recorded import training_set
from tiny import make_prompts

from calibration.methods import token_level as module
from calibration.methods.token_level import WINDOW, fit_token_level, score_rows, softmax_window_loss
from calibration.metrics import auroc
from calibration.pipeline import bank_of
from calibration.request_scores import score_prompts
from probes.fingerprint import fingerprint


def naive_loss(scores, label):
    """By the formula, one window after another."""
    width = min(WINDOW, len(scores))
    means = [float(np.mean(scores[start : start + width])) for start in range(len(scores) - width + 1)]
    weights = np.exp(means) / np.exp(means).sum()
    costs = [-np.log(1 / (1 + np.exp(-mean))) if label else -np.log(1 - 1 / (1 + np.exp(-mean))) for mean in means]
    return float(np.dot(weights, costs))


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 60])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_loss_is_the_formula(length, label):
    """Agreement with a loop over windows, for prompts shorter than a window too."""
    scores = np.random.default_rng(length).normal(0, 2, length)
    found = softmax_window_loss([torch.from_numpy(scores)], torch.tensor([label], dtype=torch.float64))
    assert found.item() == pytest.approx(naive_loss(scores, label), rel=1e-9)


def test_a_confident_window_of_a_harmless_prompt_costs_more_than_a_quiet_rest_saves():
    """What plain averaging over tokens would forgive."""
    spike = torch.cat([torch.full((84,), -4.0), torch.full((16,), 4.0)])
    flat = torch.full((100,), spike.mean().item())
    losses = softmax_window_loss([spike, flat], torch.zeros(2))
    assert losses[0] > 5 * losses[1]


def test_evidence_planted_in_one_window_is_found():
    """Sixteen of a hundred tokens carry it, at a random place: the weight points along it, and the window reads it."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    harmful = rng.random(400) < 0.5
    streams = []
    for is_harmful in harmful:
        stream = torch.randn(100, 1, 32, generator=generator) + 3
        if is_harmful:
            start = int(rng.integers(0, 100 - WINDOW))
            stream[start : start + WINDOW, 0] += 2 * direction
        streams.append(stream)
    half = len(streams) // 2
    weight, bias = module._train(module._Tokens(streams[:half], harmful[:half]))
    assert torch.cosine_similarity(weight[0], direction, dim=0) > 0.9
    rest = module._Tokens(streams[half:], harmful[half:])
    areas = {r.kind: module._judge(rest, weight, bias, r)[1] for r in module._READOUTS}
    assert areas["swim"] > 0.99
    assert areas["swim"] > areas["max"] > 0.5


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's training set."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


def test_the_fitted_probe_serves_as_it_was_fitted(training, planted):
    """Its scores by the probe bank, which serves, are those it was chosen by, and they separate the planted classes."""
    [probe] = fit_token_level(training).probes
    bank = bank_of(fingerprint(planted.folder), [probe])
    scored = score_prompts(training.chat, bank, training.prompts, title="scoring").scores[:, 0]
    rows = np.arange(len(scored))
    np.testing.assert_allclose(score_rows(training, probe, rows), scored, rtol=1e-4, atol=1e-4)
    assert auroc(scored[training.harmful], scored[~training.harmful]) > 0.99
    assert probe.spec.evidence["selection_auroc"] > 0.99


def test_fitting_again_gives_the_same_probe(training):
    """Weights and choice, to the bit."""
    one, other = fit_token_level(training).probes[0], fit_token_level(training).probes[0]
    assert one.spec == other.spec
    assert torch.equal(one.weight, other.weight)


def test_memory_bounds_the_blocks_that_are_read(training, monkeypatch):
    """With room for one block, one is read; with room for none, one all the same."""
    rows = np.arange(20)
    assert len(module._layers(training, rows)) == 2
    monkeypatch.setattr(module, "_MOST_BYTES", 1)
    assert len(module._layers(training, rows)) == 1
