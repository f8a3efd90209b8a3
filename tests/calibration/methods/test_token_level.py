"""The token-level probes find evidence wherever it stands."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded import training_set
from tiny import HARMFUL_WORDS, make_prompts

from calibration.fitting.bank import bank_of
from calibration.fitting.metrics import auroc
from calibration.methods.tokens import token_level as module
from calibration.methods.tokens import token_streams
from calibration.methods.tokens.dilution import dilute
from calibration.methods.tokens.token_level import fit_token_level, score_rows
from calibration.methods.tokens.token_losses import WINDOW, attention_loss, multimax_loss, softmax_window_loss
from calibration.methods.tokens.token_streams import TokenStreams, choose_layers, request_values
from calibration.methods.tokens.token_training import TokenScores, train
from calibration.recording.request_scores import score_prompts
from probes.fingerprint import fingerprint
from probes.readout import Readout

WIDTH = 32


def naive_loss(scores, label):
    """By the formula, one window after another."""
    width = min(WINDOW, len(scores))
    means = [float(np.mean(scores[start : start + width])) for start in range(len(scores) - width + 1)]
    weights = np.exp(means) / np.exp(means).sum()
    costs = [-np.log(1 / (1 + np.exp(-mean))) if label else -np.log(1 - 1 / (1 + np.exp(-mean))) for mean in means]
    return float(np.dot(weights, costs))


def padded(prompts):
    """Token scores `[T, C]` of several prompts, with large numbers behind their ends."""
    longest = max(map(len, prompts))
    rows = [np.pad(each, ((0, longest - len(each)), (0, 0)), constant_values=1e4) for each in prompts]
    return TokenScores(torch.from_numpy(np.stack(rows)), torch.tensor([len(each) for each in prompts]))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_the_window_loss_is_the_formula(label):
    """Agreement with a loop over windows, for prompts shorter than a window too, whatever stands behind their ends."""
    prompts = [np.random.default_rng(n).normal(0, 2, (n, 1)) for n in (1, WINDOW - 1, WINDOW, WINDOW + 1, 60)]
    found = softmax_window_loss(padded(prompts), torch.tensor(0.5), torch.full((5,), label, dtype=torch.float64))
    assert found.tolist() == pytest.approx([naive_loss(each[:, 0] + 0.5, label) for each in prompts], rel=1e-9)


@pytest.mark.parametrize(("loss", "readout"), [(attention_loss, "attention"), (multimax_loss, "max")])
def test_the_other_losses_are_cross_entropy_on_what_is_served(loss, readout):
    """The score in the loss is the readout's, by its own arithmetic."""
    prompts = [np.random.default_rng(n).normal(0, 2, (n, 4)) for n in (1, 7, 30)]
    score = request_values(prompts, Readout(kind=readout)) - 0.3
    found = loss(padded(prompts), torch.tensor(-0.3), torch.ones(3, dtype=torch.float64))
    assert found.tolist() == pytest.approx(np.log1p(np.exp(-score)).tolist(), rel=1e-6)


def test_a_confident_window_of_a_harmless_prompt_costs_more_than_a_quiet_rest_saves():
    """What plain averaging over tokens would forgive."""
    spike = np.concatenate([np.full((84, 1), -4.0), np.full((16, 1), 4.0)])
    flat = np.full((100, 1), spike.mean())
    losses = softmax_window_loss(padded([spike, flat]), torch.tensor(0.0), torch.zeros(2, dtype=torch.float64))
    assert losses[0] > 5 * losses[1]


def planted_streams(plant, *, seed=0, count=600):
    """Random streams of one block, 20 to 60 tokens, with what `plant(stream, harmful, rng)` puts into them."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    harmful = rng.random(count) < 0.5
    streams = []
    for is_harmful in harmful:
        stream = torch.randn(int(rng.integers(20, 61)), 1, WIDTH, generator=generator) + 3
        plant(stream[:, 0], is_harmful, rng)
        streams.append(stream)
    half = count // 2
    return TokenStreams(tuple(streams[:half]), harmful[:half]), TokenStreams(tuple(streams[half:]), harmful[half:])


def areas(kind, fit, rest):
    """Train the kind; return its weight and the AUROC of each of its readouts on the rest."""
    weight, _ = train(fit, kind.recipe)
    return weight, {readout.kind: area for _, area, readout in module._judged(kind, rest, weight)}


DIRECTION = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(9)), dim=0)


def test_evidence_planted_in_one_window_is_found():
    """Sixteen tokens carry it, at a random place: the weight points along it, and the window reads it best."""

    def plant(stream, is_harmful, rng):
        if is_harmful:
            start = int(rng.integers(0, len(stream) - WINDOW))
            stream[start : start + WINDOW] += 1.5 * DIRECTION

    weight, found = areas(module._TOKENS, *planted_streams(plant))
    assert torch.cosine_similarity(weight[0, 0], DIRECTION, dim=0) > 0.9
    assert found["swim"] > 0.97
    assert found["swim"] > found["max"] > 0.5
    assert set(found) == {"swim", "ema", "max", "mean", "softmax"}


def plant_one_token(stream, is_harmful, rng):
    """One token carries the evidence; the prompt's other tokens stray along it as far, all together."""
    stream += rng.normal(0, 1) * DIRECTION
    if is_harmful:
        stream[int(rng.integers(0, len(stream)))] += 10 * DIRECTION


@pytest.mark.parametrize("kind", [module._ATTENTION, module._MULTIMAX], ids=lambda kind: kind.name)
def test_evidence_at_one_token_anywhere_is_found(kind):
    """Both trained readouts see it; the mean of all tokens, along the very direction that was planted, does not."""
    fit, rest = planted_streams(plant_one_token)
    _, found = areas(kind, fit, rest)
    assert found[kind.readouts[0].kind] > 0.97
    mean = request_values(rest.token_scores(DIRECTION[None, None]), Readout(kind="mean"))
    assert auroc(mean[rest.harmful], mean[~rest.harmful]) < 0.7


def plant_two_tokens(stream, is_harmful, rng):
    """Harmful prompts have two kinds of token, harmless ones one of the two, twice: no single token tells."""
    one, other = torch.zeros(WIDTH), torch.zeros(WIDTH)
    one[3], other[17] = 8.0, 8.0
    kinds = [one, other] if is_harmful else [(one, other)[int(rng.integers(2))]] * 2
    for place, each in zip(rng.choice(len(stream), 2, replace=False), kinds, strict=True):
        stream[place] += each


def test_two_tokens_that_matter_only_together_are_found_by_several_maxima():
    """MultiMax adds up one maximum for each; one linear reading, however it is read, counts two tokens either way."""
    fit, rest = planted_streams(plant_two_tokens)
    _, several = areas(module._MULTIMAX, fit, rest)
    _, one = areas(module._TOKENS, fit, rest)
    assert several["max"] > 0.95
    assert max(one.values()) < 0.8


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's training set."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


def test_the_fitted_probes_serve_as_they_were_fitted(training, planted, monkeypatch):
    """Scores by the probe bank, which serves, are those that training saw, and they separate the planted classes."""
    seen = {}

    def spy(kind, layers, fit, select):
        seen[kind.name] = select
        return probe(kind, layers, fit, select)

    probe = module._probe
    monkeypatch.setattr(module, "_probe", spy)
    probes = fit_token_level(training).probes
    assert [each.spec.name for each in probes] == ["tokens", "attention", "multimax"]
    scored = score_prompts(training.chat, bank_of(fingerprint(planted.folder), probes), training.prompts).scores
    for column, each in enumerate(probes):
        served, streams = scored[:, column], seen[each.spec.name]
        trained = request_values(streams.token_scores(each.weight), each.spec.readout) + each.spec.bias
        np.testing.assert_allclose(served[training.select], trained, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(score_rows(training, [each], np.arange(9))[:, 0], served[:9], rtol=1e-4, atol=1e-4)
        assert auroc(served[training.harmful], served[~training.harmful]) > 0.99
        assert each.spec.evidence["selection_auroc"] > 0.99


@pytest.mark.parametrize("kind", [module._TOKENS, module._ATTENTION, module._MULTIMAX], ids=lambda kind: kind.name)
def test_standardisation_is_folded_into_weight_and_bias(kind):
    """Untrained, the probe's token scores have the mean and the spread over all tokens that they are begun with."""
    fit, _ = planted_streams(plant_one_token)
    weight, bias = train(fit, replace(kind.recipe, learning_rate=0.0, steps=1, spread=1.0))
    scores = np.concatenate(fit.token_scores(weight))
    assert scores.mean(axis=0) @ kind.recipe.shifts + bias == pytest.approx(0, abs=1e-3)
    assert 0.5 < scores.std(axis=0).mean() < 2


@pytest.mark.long
def test_fitting_again_gives_the_same_probes(training):
    """Weights and choice, to the bit."""
    for one, other in zip(fit_token_level(training).probes, fit_token_level(training).probes, strict=True):
        assert one.spec == other.spec
        assert torch.equal(one.weight, other.weight)


def test_diluted_prompts_hold_their_own_text_and_harmless_text(training):
    """Both classes are wrapped alike: the label stays, harmful words are the prompt's own, and places vary."""
    rows = training.fit
    diluted = dilute(training, rows, training.fit)
    assert (diluted.harmful == training.harmful[rows]).all()
    places = []
    for row, prompt in zip(rows, diluted.prompts, strict=True):
        own = training.prompts.prompts[row].text
        lines = prompt.text.split("\n")
        places.append((lines.index(own) + 0.5) / len(lines))
        around = [line for line in lines if line != own]
        assert around
        assert not any(word in line for line in around for word in HARMFUL_WORDS)
    assert np.quantile(places, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.15)
    added = diluted.lengths - training.prompts.lengths[rows]
    harmful = diluted.harmful
    assert added[harmful].mean() == pytest.approx(added[~harmful].mean(), rel=0.2)


@pytest.mark.long
def test_memory_bounds_blocks_prompts_and_dilution(training, monkeypatch):
    """Streams in memory stay within the bound, however little it allows, down to one block of a few prompts."""
    num_tokens, width = int(training.prompts.lengths.sum()), training.chat.hidden_size * 4
    assert len(choose_layers(training.chat, num_tokens)) == 2
    read = []

    def count(chat, prompts, layers):
        read.append(int(prompts.lengths.sum()) * len(layers) * width)
        return original(chat, prompts, layers)

    original = module.read_streams
    monkeypatch.setattr(module, "read_streams", count)
    for room in (2 * num_tokens * width, num_tokens * width // 2):
        read.clear()
        monkeypatch.setattr(token_streams, "_MOST_BYTES", room)
        fit_token_level(training)
        assert room / 4 < sum(read) <= room
    monkeypatch.setattr(token_streams, "_MOST_BYTES", 1)
    assert len(fit_token_level(training).probes[0].spec.layers) == 1
