"""Neurons are read and overwritten where they are, and ranked by what they are."""

import numpy as np
import pytest
import torch
from families import FAMILIES, random_chat
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score
from tiny import LAYERS, make_prompts, write_prompts

from calibration.fitting.metrics import aurocs
from calibration.methods.neurons import separation as neuron_separation
from calibration.methods.neurons.ranking import Ranking, matched_random
from calibration.methods.neurons.separation import rank_by_separation, standardised_difference
from calibration.model.neurons import Neurons, neurons_at_end, overwritten, watched
from calibration.prompts.batching import make_batch
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts

TEXTS = [[1, 2, 40, 50, 60, 3, 4], [1, 2, 70, 3, 4]]


@pytest.fixture
def prompts(tokenizer, tmp_path):
    """Forty prompts of several lengths."""
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(40, 5))), 64)


def logits_of(chat):
    """Next-token logits of two padded texts."""
    return chat.last_logits(make_batch(TEXTS, [0, 1], chat.device))


def test_neurons_are_what_the_down_projection_reads(chat):
    """Multiplied by the down-projection's weight they give the MLP's output, at every position."""
    neurons, written = Neurons.of(chat), {}
    for layer, block in enumerate(chat.model.model.layers):
        block.mlp.register_forward_hook(lambda _m, _a, output, layer=layer: written.update({layer: output}))
    with watched(neurons, range(LAYERS), lambda _, values: values) as read:
        logits_of(chat)
    for layer, block in enumerate(chat.model.model.layers):
        torch.testing.assert_close(read[layer] @ block.mlp.down_proj.weight.T, written[layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_neurons_by_text_and_position(family, tokenizer):
    """`[B, T, F]`, also where the model itself works on `[B * T, F]`; overwritten with themselves they change
    nothing.
    """
    chat = random_chat(family, tokenizer)
    neurons = Neurons.of(chat)
    with watched(neurons, [0], lambda _, values: values) as read:
        plain = logits_of(chat)
    assert read[0].shape == (2, 7, neurons.widths[0])
    places = {0: torch.arange(neurons.widths[0])}
    with overwritten(neurons, places, read):
        assert torch.equal(logits_of(chat), plain)
    with overwritten(neurons, places, {0: -read[0]}):
        assert not torch.allclose(logits_of(chat), plain)
    assert torch.equal(logits_of(chat), plain)


def test_only_the_named_neurons_are_overwritten(chat):
    """The others keep their values."""
    neurons, places = Neurons.of(chat), {1: torch.tensor([3, 17])}
    with watched(neurons, [1], lambda _, values: values) as before:
        logits_of(chat)
    with (
        overwritten(neurons, places, {1: torch.full((2, 7, 2), 9.0)}),
        watched(neurons, [1], lambda _, values: values) as after,
    ):
        logits_of(chat)
    expected = before[1].clone()
    expected[..., [3, 17]] = 9.0
    assert torch.equal(after[1], expected)


def test_neurons_at_the_end_keep_the_order_asked_for(chat, prompts):
    """Any order, several blocks, padded batches: each column is that neuron at that prompt's own last token."""
    neurons = Neurons.of(chat)
    numbers = np.array([100, 3, 47, 48, 143, 2])
    found = neurons_at_end(neurons, prompts, numbers)
    for row, ids in enumerate(prompts.token_ids):
        with watched(neurons, range(LAYERS), lambda _, values: values) as read:
            chat.last_logits(make_batch([ids], [0], chat.device))
        alone = torch.cat([read[layer][0, -1] for layer in range(LAYERS)])[numbers]
        np.testing.assert_allclose(found[row], alone.numpy(), atol=1e-5)


def test_numbers_count_through_the_blocks(chat):
    """Neuron 48 is the first of block 1, and places within a block ascend."""
    neurons = Neurons.of(chat)
    assert neurons.layer_of(np.array([0, 47, 48, 143])).tolist() == [0, 0, 1, 2]
    places = neurons.by_layer(np.array([143, 50, 48]))
    assert {layer: each.tolist() for layer, each in places.items()} == {1: [0, 2], 2: [47]}


def test_batches_shrink_where_more_neurons_are_held(chat, monkeypatch):
    """Tokens times held neurons stays within the limit, whatever the model."""
    monkeypatch.setattr("calibration.model.neurons.HELD_BYTES", 4 * 1000)
    neurons = Neurons.of(chat)
    assert neurons.batch_tokens(10) == 100
    assert neurons.batch_tokens(1_000_000) == 1


def test_a_ranking_leaves_the_last_block_out(chat):
    """However high its scores are."""
    neurons = Neurons.of(chat)
    scores = np.arange(neurons.count, dtype=np.float64)
    ranking = Ranking("r", "number", scores, neurons)
    assert ranking.top(3).tolist() == [95, 94, 93]
    assert len(ranking.share(1.0)) == 96
    assert len(ranking.share(1e-6)) == 1


def test_random_twins_have_the_blocks_of_the_chosen(chat):
    """As many of each block, each once, others each time."""
    neurons, generator = Neurons.of(chat), np.random.default_rng(0)
    chosen = np.array([0, 1, 2, 60, 61])
    draws = [matched_random(neurons, chosen, generator) for _ in range(3)]
    for draw in draws:
        assert np.bincount(neurons.layer_of(draw)).tolist() == [3, 2]
        assert len(np.unique(draw)) == 5
    assert not np.array_equal(*map(np.sort, draws[:2]))
    everything = np.arange(48)
    assert np.array_equal(np.sort(matched_random(neurons, everything, generator)), everything)


def test_separation_agrees_with_scipy_and_scikit_learn():
    """The standardised difference is Student's t rescaled; AUROCs with ties are scikit-learn's; constants give
    nothing.
    """
    rng = np.random.default_rng(0)
    harmful = rng.random(120) < 0.3
    features = np.round(rng.normal(size=(120, 6)) + harmful[:, None] * np.arange(6) / 3, 1).astype(np.float32)
    features[:, 0] = 0.1
    n, m = harmful.sum(), (~harmful).sum()
    for column in range(1, 6):
        t = ttest_ind(features[harmful, column].astype(float), features[~harmful, column].astype(float)).statistic
        expected = t * np.sqrt((1 / n + 1 / m) * (n + m) / (n + m - 2))
        assert standardised_difference(features, harmful)[column] == pytest.approx(expected)
        assert aurocs(features, harmful)[column] == pytest.approx(roc_auc_score(harmful, features[:, column]))
    assert abs(standardised_difference(features, harmful)[0]) < 1e-6
    assert aurocs(features, harmful)[0] == 0.5


def test_a_neuron_planted_to_see_harm_ranks_first_without_a_partner(chat, prompts, monkeypatch):
    """A neuron that fires on harmful prompts only leads both rankings, also when blocks are read in several passes."""
    block, place = 1, 30
    plant = neurons_of_harm(chat, prompts, block, place)
    for held in (1 << 30, 32 * 40 * 20):
        monkeypatch.setattr(neuron_separation, "HELD_BYTES", held)
        for ranking in rank_by_separation(plant, prompts):
            assert ranking.top(1).tolist() == [block * 48 + place]


def neurons_of_harm(chat, prompts, block, place):
    """Let one neuron be 1 on harmful prompts and 0 on others, by whose prompt it is: no other neuron can be as
    clear.
    """
    neurons = Neurons.of(chat)
    labels = {ids: float(label) for ids, label in zip(prompts.token_ids, prompts.harmful, strict=True)}
    seen = []
    chat.model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)

    def write(_module, args):
        rows = [
            tuple(ids[: int(mask.sum())].tolist())
            for ids, mask in zip(seen[-1]["input_ids"], seen[-1]["attention_mask"], strict=True)
        ]
        args[0][..., place] = torch.tensor([labels[row] for row in rows])[:, None]
        return args

    neurons.projections[block].register_forward_pre_hook(write)
    return neurons
