"""Patching gives back what was planted, equals a plain recomputation, and says so when there is nothing to restore."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES
from planted_pair import PLANTED, make_pair
from recorded import training_set
from tiny import LAYERS, make_model, make_prompts, write_prompts

from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped
from calibration.methods.neurons.activation_contrast import contrast_answers, rank_by_change
from calibration.methods.neurons.ranking import matched_random
from calibration.methods.neurons.safety_neurons import contrast_sample
from calibration.model.chat_model import ChatModel
from calibration.model.generation import generate
from calibration.model.neurons import Neurons, overwritten, watched
from calibration.prompts.batching import make_batch
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts
from calibration.studies.neurons.alignment_tax import study_alignment_tax
from calibration.studies.neurons.patching import RefusalOpenings, answer, answer_patched, causal_effect
from calibration.studies.neurons.patching_study import study_patching


@pytest.fixture
def pair(tokenizer, tmp_path):
    """A training set of the aligned model of the planted pair, with its partner."""
    aligned, partner = make_pair(tokenizer)
    return replace(training_set(aligned, tmp_path, make_prompts(240, 0)), partner=partner)


@pytest.fixture
def prompts(tokenizer, tmp_path):
    """Prompts of several lengths."""
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "q.jsonl", make_prompts(10, 3))), 64)


def random_pair(tokenizer, *, differing, make=make_model):
    """Two random models that differ in the weights whose names contain one of `differing`, and in nothing else."""
    generator = torch.Generator().manual_seed(9)
    torch.manual_seed(4)
    chats = [ChatModel.wrap(make(len(tokenizer)), tokenizer)]
    chats.append(ChatModel.wrap(deepcopy(chats[0].model), tokenizer))
    with torch.no_grad():
        for name, parameter in chats[1].model.named_parameters():
            if any(part in name for part in differing):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return tuple(map(Neurons.of, chats))


def test_the_change_score_finds_the_planted_neurons(pair):
    """The eight that differ lead the ranking, and others of their block did not change at all."""
    aligned, partner = Neurons.of(pair.chat), Neurons.of(pair.partner)
    ranking = rank_by_change(aligned, partner, contrast_sample(pair, harmful=True))
    assert sorted(ranking.top(len(PLANTED))) == PLANTED.tolist()
    assert ranking.scores[ranking.top(9)[-1]] == 0


def test_planted_neurons_restore_refusals_and_random_ones_do_not(pair):
    """Their causal effect is 1, in refusals and in log-odds; random neurons of the same block stay near 0."""
    aligned, partner = Neurons.of(pair.chat), Neurons.of(pair.partner)
    harmful, tokens = contrast_sample(pair, harmful=True), pair.refusal_tokens
    best, worst = answer(aligned, harmful, tokens, 4), answer(partner, harmful, tokens, 4)
    openings = RefusalOpenings.learn(best.tokens, (), tokens)

    def effects(sets):
        given = [answer_patched(aligned, partner, harmful, chosen, tokens, 4) for chosen in sets]
        refused = np.stack([openings.refused(each.tokens) for each in given])
        log_odds = np.stack([each.refusal for each in given])
        return (
            causal_effect(refused, openings.refused(worst.tokens), openings.refused(best.tokens)),
            causal_effect(log_odds, worst.refusal, best.refusal),
        )

    for effect in effects([PLANTED]):
        assert effect.value == pytest.approx(1, abs=1e-4)
    generator = np.random.default_rng(0)
    for effect in effects([matched_random(aligned, PLANTED, generator) for _ in range(5)]):
        assert effect.high < 0.3


def test_all_neurons_make_the_aligned_model_where_only_they_differ(tokenizer, prompts):
    """If the two models differ before their neurons alone, patching all of them gives the aligned model's answers."""
    aligned, partner = random_pair(tokenizer, differing=("gate_proj", "up_proj"))
    everything, tokens = np.arange(aligned.count), (5,)
    best = answer(aligned, prompts, tokens, 8)
    patched = answer_patched(aligned, partner, prompts, everything, tokens, 8)
    assert patched.tokens == best.tokens
    np.testing.assert_allclose(patched.refusal, best.refusal, atol=1e-4)
    assert answer(partner, prompts, tokens, 8).tokens != best.tokens
    nothing = answer_patched(aligned, partner, prompts, everything[:0], tokens, 8)
    assert nothing.tokens == answer(partner, prompts, tokens, 8).tokens


@pytest.mark.parametrize(
    ("make", "before", "written"),
    [
        (make_model, ("gate_proj", "up_proj"), ("down_proj",)),
        (FAMILIES["gpt2"], ("mlp.c_fc",), ("mlp.c_proj.weight",)),
    ],
)
def test_neurons_with_their_output_weights_are_the_whole_mlp(tokenizer, prompts, make, before, written):
    """A fully fine-tuned MLP is restored by values and output weights together, and by neither alone."""
    aligned, partner = random_pair(tokenizer, differing=(*before, *written), make=make)
    everything, tokens = np.arange(aligned.count), (5,)
    best = answer(aligned, prompts, tokens, 8)
    both = answer_patched(aligned, partner, prompts, everything, tokens, 8, with_weights=True)
    assert both.tokens == best.tokens
    np.testing.assert_allclose(both.refusal, best.refusal, atol=1e-3)
    assert answer_patched(aligned, partner, prompts, everything, tokens, 8).tokens != best.tokens


def test_neurons_alone_do_not_make_the_aligned_model_where_attention_differs(tokenizer, prompts):
    """What alignment wrote into attention stays behind; a causal effect below 1 is no fault of the patch."""
    aligned, partner = random_pair(tokenizer, differing=("o_proj", "gate_proj"))
    patched = answer_patched(aligned, partner, prompts, np.arange(aligned.count), (5,), 8)
    assert patched.tokens != answer(aligned, prompts, (5,), 8).tokens


def test_patching_by_steps_is_patching_from_scratch(tokenizer, prompts):
    """Batches and caches change nothing: each prompt alone, both models over the whole text at every step."""
    aligned, partner = random_pair(tokenizer, differing=("proj",))
    chosen = np.random.default_rng(1).permutation(aligned.count)[:60]
    places = aligned.by_layer(chosen)
    found = answer_patched(aligned, partner, prompts, chosen, (5,), 6).tokens
    for ids, tokens in zip(prompts.token_ids, found, strict=True):
        text = list(ids)
        for token in tokens:
            batch = make_batch([text], [0], aligned.chat.device)
            with watched(aligned, range(LAYERS), lambda layer, values: values[..., places[layer]]) as values:
                aligned.chat.last_logits(batch)
            with overwritten(partner, places, values):
                assert int(partner.chat.last_logits(batch).argmax()) == token
            text.append(token)


def test_the_contrast_is_the_mean_over_positions_that_predict_the_answer(tokenizer, prompts, monkeypatch):
    """By a plain loop over single texts; batches of a few tokens give the same sums."""
    aligned, partner = random_pair(tokenizer, differing=("proj",))
    answers = generate(partner.chat, prompts, 5)
    squares, means = [], []
    for ids, tokens in zip(prompts.token_ids, answers, strict=True):
        seen = []
        for side in (aligned, partner):
            with watched(side, range(LAYERS), lambda _, values: values) as read:
                side.chat.last_logits(make_batch([[*ids, *tokens]], [0], side.chat.device))
            whole = torch.cat([read[layer][0] for layer in range(LAYERS)], dim=1)
            seen.append(whole[len(ids) - 1 : len(ids) - 1 + len(tokens)])
        squares.append((seen[0] - seen[1]).square())
        means.append(seen[0] - seen[1])
    for held in (1 << 30, 4 * 144 * 20):
        monkeypatch.setattr("calibration.model.neurons.HELD_BYTES", held)
        contrast = contrast_answers(aligned, partner, prompts.token_ids, answers)
        np.testing.assert_allclose(contrast.scores, torch.cat(squares).mean(0).sqrt().numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(contrast.mean, torch.cat(means).mean(0).numpy(), rtol=1e-3, atol=1e-5)
        assert contrast.num_positions == sum(map(len, answers))


def test_a_causal_effect_is_the_share_of_the_gap():
    """0 for the partner's own answers, 1 for the aligned model's, a half between; the interval holds the value."""
    partner, aligned = np.zeros(40), np.ones(40)
    assert causal_effect(aligned[None], partner, aligned).value == 1
    assert causal_effect(partner[None], partner, aligned).value == 0
    half = causal_effect(np.stack([np.arange(40) % 2, 1 - np.arange(40) % 2]).astype(float), partner, aligned)
    assert half.value == 0.5
    assert half.low < 0.5 < half.high
    assert half.high - half.low < 0.4


def test_the_interval_covers_draws_and_prompts():
    """One bootstrap sample at a time gives the same quantiles, up to the luck of the draw."""
    rng = np.random.default_rng(3)
    partner, aligned = rng.normal(-4, 1, 50), rng.normal(3, 1, 50)
    patched = rng.normal(0, 1, (4, 50)) + rng.normal(0, 1, (4, 1))
    samples = []
    for _ in range(3000):
        rows, columns = rng.integers(4, size=4), rng.integers(50, size=50)
        base, top = partner[columns].mean(), aligned[columns].mean()
        samples.append((patched[rows][:, columns].mean() - base) / (top - base))
    effect = causal_effect(patched, partner, aligned)
    assert (effect.low, effect.high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=0.03)


def test_openings_are_what_the_model_says_to_harm_and_not_to_others():
    """An opening counts when it starts with a refusal token and is commoner on harmful prompts."""
    openings = RefusalOpenings.learn(
        [(7, 1, 2, 9), (7, 1, 2), (7, 3, 3), (8, 1, 2)], [(7, 3, 3), (7, 3, 3), (4, 4, 4), (4, 4, 4)], (7,)
    )
    assert openings.refused([(7, 1, 2, 5), (7, 1, 3), (7, 3, 3), (8, 1, 2), ()]).tolist() == [1, 0, 0, 0, 0]


def test_the_study_finds_the_published_shape_where_it_was_planted(pair, monkeypatch):
    """5 % of the neurons restore all refusals, random twins do not, and the study says so."""
    monkeypatch.setattr("calibration.studies.neurons.patching_study.SHARES", (0.02, 0.05, 1.0))
    (study,) = study_patching(pair, Fitted())
    assert "The published shape (5% restore over 90%, random ones far less) appears in refusals" in study.finding
    refusals = {series.name: series for series in study.charts[0].series}
    assert refusals["pair"].y == pytest.approx([1.0] * 3)
    assert max(refusals["random, matched by block"].y[:2]) < 0.3
    rows = {(row[0], row[1]): row for row in study.tables[0].rows}
    assert rows["pair", "5.0%"][-1] == 0.0  # no harmless prompt is refused
    assert rows["pair, with output weights", "5.0%"][4:6] == pytest.approx((1.0, 1.0), abs=1e-4)


def test_the_study_says_when_there_is_nothing_to_restore(pair):
    """A partner that refuses as much leaves no gap, and no partner leaves no question: each with its reason."""
    with pytest.raises(Skipped, match="refuses no more harmful prompts than its partner"):
        study_patching(replace(pair, partner=pair.chat), Fitted())
    for study in (study_patching, study_alignment_tax):
        with pytest.raises(Skipped, match="--partner"):
            study(replace(pair, partner=None), Fitted())


def test_the_alignment_tax_compares_two_kinds_of_prompts_with_halves_of_one(pair):
    """Planted neurons change on harmful prompts; the halves of one kind agree on them."""
    (study,) = study_alignment_tax(pair, Fitted())
    overlap, ranks, changes = study.tables[0].rows
    assert all(-1 <= value <= 1 for row in (overlap, ranks, changes) for value in row[1:])
    assert overlap[2] > 0.3
    assert changes[2] > 0.99
