"""Ablating activations and orthogonalising weights are one and the same thing, in every family; and nothing saves
it.
"""

from pathlib import Path

import pytest
import torch
from tiny import HIDDEN, make_model
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from calibration.model.chat_model import ChatModel
from calibration.model.intervention import ablated
from calibration.prompts.batching import make_batch
from probes.errors import ModelError
from tests.calibration.studies.causal.orthogonalised import orthogonalised

LAB = Path(__file__).parents[4] / "examples" / "lab" / "aligned"
TOKENS = [[1, 2, 40, 50, 60, 3, 4], [1, 2, 70, 3, 4]]


def built(family, size):
    """A random model of the family, biases and all."""
    torch.manual_seed(2)
    if family in ("llama", "tied llama"):
        return make_model(size, tie_word_embeddings=family == "tied llama")
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=HIDDEN, n_layer=3, n_head=4, n_positions=64))
    elif family == "neox":
        config = GPTNeoXConfig(vocab_size=size, hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4)
        model = GPTNeoXForCausalLM(config)
    else:
        shape = {"hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "num_hidden_layers": 3, "ffn_dim": 48}
        model = OPTForCausalLM(OPTConfig(vocab_size=size, num_attention_heads=4, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("family", ["llama", "tied llama", "gpt2", "neox", "opt"])
def test_orthogonalised_weights_give_the_ablated_logits(family, tokenizer):
    """Hooks and weights agree on every logit, and both differ from the untouched model."""
    chat = ChatModel.wrap(built(family, len(tokenizer)), tokenizer)
    direction = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3)) * 7
    batch = make_batch(TOKENS, [0, 1], chat.device)
    untouched = chat.last_logits(batch)
    with ablated(chat, direction):
        by_hook = chat.last_logits(batch)
    by_weight = orthogonalised(chat, direction).last_logits(batch)
    torch.testing.assert_close(by_hook, by_weight, atol=1e-4, rtol=1e-4)
    assert (by_hook - untouched).abs().max() > 0.05
    assert torch.equal(chat.last_logits(batch), untouched)


def test_the_lab_model_agrees_too():
    """A trained model with tied embeddings, in float32."""
    chat = ChatModel.load(LAB, dtype="float32")
    direction = torch.randn(chat.hidden_size, generator=torch.Generator().manual_seed(3))
    batch = make_batch([list(range(5, 25)), list(range(40, 50))], [0, 1], chat.device)
    with ablated(chat, direction):
        by_hook = chat.last_logits(batch)
    torch.testing.assert_close(by_hook, orthogonalised(chat, direction).last_logits(batch), atol=2e-4, rtol=1e-4)


def test_a_model_without_its_refusals_is_not_saved(chat, tmp_path):
    """The copy refuses to be written; the original is as it was."""
    copy = orthogonalised(chat, torch.ones(HIDDEN))
    with pytest.raises(ModelError, match="not written to disk"):
        copy.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_in_calibration_writes_a_model():
    """No module of the package saves a model at all."""
    package = Path(__file__).parents[4] / "calibration"
    calls = [path.name for path in package.rglob("*.py") if ".save_pretrained(" in path.read_text()]
    assert not calls
