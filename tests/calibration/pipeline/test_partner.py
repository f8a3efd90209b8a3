"""A partner is the same model at another time; anything else is refused by name."""

import pytest
import torch
from tiny import make_model
from transformers import AutoTokenizer

from calibration.model.partner import load_partner
from probes.errors import ModelError


def saved(tokenizer, folder, **overrides):
    """A tiny model's folder."""
    make_model(len(tokenizer), seed=3, **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_checkpoint_of_the_same_shape_is_a_partner(chat, tokenizer, tmp_path):
    """It is loaded with its own weights."""
    partner = load_partner(chat, saved(tokenizer, tmp_path))
    assert partner.num_layers == chat.num_layers
    assert not torch.equal(partner.head.weight, chat.head.weight)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"num_hidden_layers": 2}, "decoder blocks"),
        ({"hidden_size": 64}, "hidden size"),
        ({"intermediate_size": 96}, "shapes of the weights"),
    ],
)
def test_another_architecture_is_refused(chat, tokenizer, tmp_path, overrides, what):
    """The error names the partner and what differs."""
    with pytest.raises(ModelError, match=what) as caught:
        load_partner(chat, saved(tokenizer, tmp_path, **overrides))
    assert caught.value.field == "partner"


def test_another_tokenizer_is_refused(chat, tokenizer, tmp_path):
    """Equal shapes are not enough: tokens would mean other words."""
    other = AutoTokenizer.from_pretrained(saved(tokenizer, tmp_path))
    other.add_tokens(["orchard"])
    other.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="vocabulary"):
        load_partner(chat, tmp_path)
