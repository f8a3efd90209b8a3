"""Sites hand over what is there, go on with what they are given, and leave the model as it was."""

import pytest
import torch
from tiny import HIDDEN, LAYERS, make_model
from transformers import GPT2Config, GPT2LMHeadModel

from calibration.model.chat_model import ChatModel
from calibration.model.float32 import in_float32, too_large
from calibration.model.refusal_gradient import differentiable, refusal_log_odds, stream_gradients
from calibration.model.refusal_metric import refusal_metric
from calibration.model.sites import Site, Sites
from calibration.prompts.batching import make_batch

TOKENS = [[1, 2, 40, 50, 60, 3, 4], [1, 2, 70, 3, 4]]


def grouped(tokenizer):
    """A Llama whose heads share keys and values in pairs."""
    return ChatModel.wrap(make_model(len(tokenizer), num_key_value_heads=2), tokenizer)


def other_family(tokenizer):
    """A GPT-2."""
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=64)
    return ChatModel.wrap(GPT2LMHeadModel(config), tokenizer)


@pytest.mark.parametrize("make", [grouped, other_family])
def test_looking_changes_nothing(tokenizer, make):
    """Every kind of site is seen in every block, and the logits are the model's own."""
    chat = make(tokenizer)
    batch = make_batch(TOKENS, [0, 1], chat.device)
    seen, own = {}, chat.last_logits(batch)
    sites = Sites.of(chat, batch)
    with sites.tapped(lambda site, value: seen.setdefault(site, value)):
        watched = chat.last_logits(batch)
    torch.testing.assert_close(watched, own, atol=1e-5, rtol=1e-5)
    assert torch.equal(chat.last_logits(batch), own)
    kinds = {"query", "key", "pattern", "head", "attention", "neuron", "mlp", "stream"}
    assert set(seen) == {Site(kind, layer) for kind in kinds for layer in range(LAYERS)}


def test_a_head_taken_out_is_its_columns_of_the_output_matrix(chat):
    """Zeroing a head through its site equals zeroing the columns that read it."""
    batch = make_batch(TOKENS, [0, 1], chat.device)

    def without(site, value):
        if site == Site("head", 1):
            value = value.clone()
            value[:, :, 2] = 0
        return value

    with Sites.of(chat, batch).tapped(without):
        by_site = chat.last_logits(batch)
    width = HIDDEN // 4
    with torch.no_grad():
        chat.model.model.layers[1].self_attn.o_proj.weight[:, 2 * width : 3 * width] = 0
    torch.testing.assert_close(by_site, chat.last_logits(batch), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_finite_differences(chat):
    """Moving the stream a little changes the metric as its gradient says; padding has none."""
    batch, tokens = make_batch(TOKENS, [0, 1], chat.device), (5, 9)
    gradient = stream_gradients(chat, batch, [1], tokens)[1]
    assert gradient[1, 5:].abs().max() == 0
    step = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)) * 1e-3

    def metric(sign):
        handle = chat.blocks[1].register_forward_hook(
            lambda _block, _args, out: out + sign * step if torch.is_tensor(out) else (out[0] + sign * step, *out[1:])
        )
        logits = chat.last_logits(batch)
        handle.remove()
        return refusal_log_odds(logits, tokens)

    torch.testing.assert_close((metric(1) - metric(-1)) / 2, (gradient * step).sum(dim=(1, 2)), atol=1e-4, rtol=1e-2)


def test_the_differentiable_metric_is_the_metric(chat):
    """It equals the one that probabilities give."""
    logits = chat.last_logits(make_batch(TOKENS, [0, 1], chat.device))
    ours = refusal_log_odds(logits, (5, 9)).double().numpy()
    assert ours == pytest.approx(refusal_metric(logits.log_softmax(dim=-1), (5, 9)), abs=1e-3)


def test_float32_is_for_a_while(tokenizer):
    """A bfloat16 model computes in float32 within the block, and has its own tensors back after an error."""
    chat = ChatModel.wrap(make_model(len(tokenizer), dtype=torch.bfloat16), tokenizer)
    before = [parameter.data_ptr() for parameter in chat.model.parameters()]
    with in_float32(chat.model), differentiable(chat):
        assert {parameter.dtype for parameter in chat.model.parameters()} == {torch.float32}
        assert chat.differentiable_logits(make_batch(TOKENS, [0, 1], chat.device)).requires_grad
    with pytest.raises(RuntimeError, match="stop"), in_float32(chat.model):
        raise RuntimeError("stop")
    assert [parameter.data_ptr() for parameter in chat.model.parameters()] == before


def test_a_model_too_large_for_float32_is_left_alone(tokenizer, monkeypatch):
    """Where memory is short the checks say so instead of exhausting it; a float32 model needs no copy."""
    narrow = make_model(len(tokenizer), dtype=torch.bfloat16)
    assert too_large(narrow) is None
    monkeypatch.setattr("calibration.model.float32._free_bytes", lambda _device: 1000)
    assert "float32 weights take" in too_large(narrow)
    assert too_large(make_model(len(tokenizer))) is None
