"""Toxification reversal: heads are pushed away from where a prefix leads them, at their norms, and only at the last
token.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recorded import refusing_by, training_set
from tiny import HARMFUL_WORDS, PLAIN_WORDS, make_prompts

from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped
from calibration.model.attention_heads import find_attentions
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.template import template_prefix, template_suffix
from calibration.studies.steering.toxification_reversal import reversal, reversal_study, turned_back


@pytest.fixture
def training(planted_chat, tmp_path):
    """Prompts of both kinds for the model that refuses for a known reason."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


@pytest.fixture
def tokens(training):
    """The planted model's refusal tokens."""
    return training.refusal_tokens


def refusals(training, tokens, *intervention):
    harmless = training.prompts.subset(np.flatnonzero(~training.harmful)[:32])
    return refusal_metric(first_token_log_probs(training.chat, harmless, *intervention), tokens)


def test_pushed_away_from_plain_words_the_model_refuses_more_and_from_harmful_ones_less(training, tokens):
    """The planted heads copy what they read: turned back from plain words, harmless prompts come nearer to a
    refusal.
    """
    chat = training.chat
    plain, harmful = (
        chat.tokenizer(" ".join(words[:6]) + " ", add_special_tokens=False).input_ids
        for words in (PLAIN_WORDS, HARMFUL_WORDS)
    )
    attentions, before = find_attentions(chat), refusals(training, tokens)
    more = refusals(training, tokens, reversal(chat, attentions, (plain, harmful), 1.0))
    less = refusals(training, tokens, reversal(chat, attentions, (harmful, plain), 1.0))
    assert more.mean() > before.mean() > less.mean()
    assert (more > before).mean() > 0.9


def test_prefixes_that_lead_the_same_way_change_nothing(training, tokens):
    """Twice the same prefix, there is no turn; at strength 0 there is none to take back."""
    chat, attentions = training.chat, find_attentions(training.chat)
    one, other = (chat.tokenizer(f"{word} ", add_special_tokens=False).input_ids for word in ("garden", "forge"))
    before = refusals(training, tokens)
    np.testing.assert_allclose(
        refusals(training, tokens, reversal(chat, attentions, (one, one), 2.0)), before, atol=1e-3
    )
    np.testing.assert_allclose(
        refusals(training, tokens, reversal(chat, attentions, (one, other), 0.0)), before, atol=1e-3
    )


def test_norms_stay_and_the_turn_shrinks():
    """By hand: every head keeps its norm, and its component along the turn falls."""
    generator = torch.Generator().manual_seed(3)
    outputs, turns = (torch.randn(5, 4, 8, generator=generator) for _ in range(2))
    moved = turned_back(outputs, turns, 0.5)
    torch.testing.assert_close(moved.norm(dim=-1), outputs.norm(dim=-1))
    assert ((moved * turns).sum(-1) < (outputs * turns).sum(-1)).all()


def test_what_the_template_puts_around_the_words_is_found(planted_chat):
    """Prefix, words and suffix together are the whole prompt."""
    tokenizer = planted_chat.tokenizer
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Zebra"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    before, after = template_prefix(tokenizer), template_suffix(tokenizer)
    assert tuple(ids[: len(before)]) == before
    assert tuple(ids[-len(after) :]) == after
    assert "ebra" in tokenizer.decode(ids[len(before) : -len(after)])


def test_the_study_names_its_price_and_says_where_nothing_refuses(training):
    """Every strength is a row with refusals and nats; a model without refusals is not asked."""
    [study] = reversal_study(training, Fitted())
    assert study.tables[0].rows[0][0] == 0.0
    assert "two more passes" in study.finding
    with pytest.raises(Skipped, match="starts its answers to harmful prompts as"):
        reversal_study(refusing_by(training), Fitted())


def test_conversations_have_no_one_place_for_a_prefix(training):
    """Where every prompt has several turns there is nothing to measure, and the reason is given."""
    turns = [replace(prompt, messages=prompt.messages * 2) for prompt in training.prompts.prompts]
    several = replace(training, prompts=replace(training.prompts, prompts=tuple(turns)))
    with pytest.raises(Skipped, match="no selection prompt of one class is a single message"):
        reversal_study(several, Fitted())
