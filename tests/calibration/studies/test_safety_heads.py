"""Ships and Sahara name the head that was made to carry refusals, and say what it is worth against others."""

import numpy as np
import pytest
import torch
from planted_head import CARRIER, lone_word_prompts, make_carrier_model
from recorded import refusing_by, training_set
from scipy.linalg import subspace_angles
from tiny import make_model

from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.attention_heads import all_heads, find_attentions, without_heads
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import first_token_log_probs, mean_kl, refusal_metric
from calibration.studies.heads.safety_heads import safety_heads
from calibration.studies.heads.ships import HeadScores, kl, read_answers, shift

REFUSE = 5


@pytest.fixture
def training(tokenizer, tmp_path):
    """Recorded prompts of the model whose head 2 of block 0 carries refusals."""
    return training_set(
        ChatModel.wrap(make_carrier_model(tokenizer)[0], tokenizer), tmp_path, lone_word_prompts(160, 0)
    )


@pytest.fixture
def scores(training):
    """Its heads and twelve harmful prompts."""
    prompts = training.prompts.subset(training.sample(training.fit, harmful=True, most=12))
    return HeadScores(training.chat, find_attentions(training.chat), prompts)


def test_ships_names_the_carrier_on_every_prompt(scores):
    """For each harmful prompt the head with the largest KL is the planted one, by far."""
    effects = scores.effects(all_heads(scores.attentions))
    table = np.stack([effect.ships for effect in effects])
    winners = {effects[row].head for row in table.argmax(axis=0)}
    assert winners == {CARRIER}
    assert np.sort(table, axis=0)[-1].min() > 20 * np.sort(table, axis=0)[-2].max()


@pytest.mark.parametrize("removal", ["undifferentiated", "silenced"])
def test_without_the_carrier_nothing_is_refused(scores, removal):
    """The plant is what it says it is: with the head every prompt is refused, without it none."""
    whole = refusal_metric(first_token_log_probs(scores.chat, scores.prompts), [REFUSE])
    with without_heads(scores.attentions, [CARRIER], removal):
        without = refusal_metric(first_token_log_probs(scores.chat, scores.prompts), [REFUSE])
    assert whole.min() > 0 > without.max()


def test_sahara_takes_the_carrier_first_and_each_head_once(scores):
    """The group grows to five distinct heads; its first member is the planted one, and its angle never comes from
    nothing.
    """
    alone = scores.effects(all_heads(scores.attentions))
    group = scores.sahara(alone)
    assert group[0].head == CARRIER
    assert len({effect.head for effect in group}) == 5
    assert group[0].shift == max(effect.shift for effect in alone)
    again = scores.effects([group[1].head], out=[CARRIER])[0]
    assert again.shift == pytest.approx(group[1].shift)


def test_the_angle_is_scipys(scores):
    """The principal angles between the leading singular directions agree with an independent implementation."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 20, 8))
    after = before + 0.3 * after
    for rank in (1, 3):
        bases = [np.linalg.svd(states.T, full_matrices=False)[0][:, :rank] for states in (before, after)]
        expected = np.rad2deg(subspace_angles(*bases)).sum()
        assert shift(torch.from_numpy(before), torch.from_numpy(after), rank) == pytest.approx(expected)
    assert shift(torch.from_numpy(before), torch.from_numpy(before)) == pytest.approx(0, abs=1e-5)


def test_answers_are_in_the_prompts_order_and_what_the_head_reads(scores):
    """However prompts are batched: the states times the output matrix are the log-probabilities, row for row."""
    answers = read_answers(scores.chat, scores.prompts)
    torch.testing.assert_close(scores.chat.head(answers.states).log_softmax(dim=-1), answers.log_probs)
    torch.testing.assert_close(answers.log_probs, first_token_log_probs(scores.chat, scores.prompts))
    other = answers.log_probs.flip(0)
    assert kl(answers.log_probs, other).mean() == pytest.approx(mean_kl(answers.log_probs, other))


def test_the_study_sets_the_group_against_random_heads(training):
    """It names the carrier, shows that refusals vanish without it and stay without others, at no cost to harmless
    prompts.
    """
    (study,) = safety_heads(training, fit_refusal_direction(training))
    assert f"heads {CARRIER}" in study.finding
    lines = {series.name: series for series in study.charts[0].series}
    found, random = lines["found, silenced"], lines["random, silenced"]
    assert found.y[0] == 1.0
    assert max(found.y[1:]) == 0.0
    assert min(random.y) == 1.0
    assert random.x == (1.0, 3.0, 5.0)
    heat, group = study.tables
    assert len(heat.rows) == 3
    assert max(number for row in heat.rows for number in row[1:]) == heat.rows[CARRIER.block][1 + CARRIER.index]
    assert group.rows[0][0] == str(CARRIER)


def test_no_refusals_no_study(training):
    """Where the model's refusal tokens are not known, there is nothing to take out heads for."""
    with pytest.raises(Skipped, match="starts its answers to harmful prompts as"):
        safety_heads(refusing_by(training), Fitted())


def test_a_model_whose_heads_cannot_be_told_apart_is_said_to_be_one(training, tokenizer):
    """Calibration goes on, and the page says why there is no answer."""
    training.chat.model.config.num_attention_heads = 3
    with pytest.raises(Skipped, match="block 0 has no attention"):
        safety_heads(refusing_by(training, REFUSE), Fitted())


def test_a_random_model_has_no_carrier(tokenizer, tmp_path):
    """Control for the plant: in a random model no head stands out by a factor of twenty."""
    training = training_set(ChatModel.wrap(make_model(len(tokenizer)), tokenizer), tmp_path, lone_word_prompts(80, 1))
    prompts = training.prompts.subset(training.sample(training.fit, harmful=True, most=12))
    scores = HeadScores(training.chat, find_attentions(training.chat), prompts)
    means = sorted(float(effect.ships.mean()) for effect in scores.effects(all_heads(scores.attentions)))
    assert means[-1] < 20 * means[-2]
