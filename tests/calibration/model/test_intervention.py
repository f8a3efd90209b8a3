"""Interventions do to the residual stream exactly what they say, and leave nothing behind."""

import pytest
import torch
from tiny import HIDDEN, LAYERS
from transformers import GPT2Config, GPT2LMHeadModel

from calibration.model.chat_model import ChatModel
from calibration.model.intervention import ablated, added, recentred
from calibration.prompts.batching import make_batch
from calibration.recording.activations import read_blocks

TOKENS = [[1, 2, 40, 50, 60, 3, 4], [1, 2, 70, 3, 4]]


def streams_of(chat):
    """Return every block's stream and the logits of two prompts."""
    batch = make_batch(TOKENS, [0, 1], chat.device)
    with read_blocks(chat, range(LAYERS), lambda stream: stream) as streams:
        logits = chat.last_logits(batch)
    return streams, logits


@pytest.fixture
def direction():
    """A direction that is not of unit length."""
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3)) * 7


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ablation_leaves_no_component(chat, tokenizer, direction, family):
    """Under ablation the stream after every block is orthogonal to the direction, at every position."""
    if family == "gpt2":
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=64)
        chat = ChatModel.wrap(GPT2LMHeadModel(config), tokenizer)
    before, _ = streams_of(chat)
    with ablated(chat, direction):
        after, _ = streams_of(chat)
    unit = direction / direction.norm()
    for layer in range(LAYERS):
        assert (before[layer] @ unit).abs().max() > 1e-2
        assert (after[layer] @ unit).abs().max() < 1e-4


def test_ablation_equals_orthogonalised_weights(chat, direction):
    """Taking the direction out of every matrix that writes to the stream gives the same logits (2406.11717, section
    4.1).
    """
    with ablated(chat, direction):
        _, by_hook = streams_of(chat)
    unit = direction / direction.norm()
    with torch.no_grad():
        embedding = chat.model.model.embed_tokens.weight
        embedding.sub_(torch.outer(embedding @ unit, unit))
        for layer in chat.model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight.sub_(torch.outer(unit, unit @ weight))
    _, by_weight = streams_of(chat)
    torch.testing.assert_close(by_hook, by_weight, atol=1e-4, rtol=1e-4)


def test_addition_shifts_one_block_at_every_position(chat, direction):
    """After block 1 the stream is what it was plus the vector; block 0 is untouched."""
    before, _ = streams_of(chat)
    with added(chat, 1, direction):
        after, _ = streams_of(chat)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], before[1] + direction, atol=1e-4, rtol=1e-4)


def test_addition_at_one_position_leaves_the_others(chat, direction):
    """As served: only the named position of each prompt changes."""
    before, _ = streams_of(chat)
    with added(chat, 1, direction, only=torch.tensor([6, 4])):
        after, _ = streams_of(chat)
    expected = before[1].clone()
    expected[0, 6] += direction
    expected[1, 4] += direction
    torch.testing.assert_close(after[1], expected, atol=1e-4, rtol=1e-4)


def test_recentring_sets_the_projection_and_nothing_else(chat, direction):
    """At the named positions the projection is the level given; what is orthogonal, and other positions, stay."""
    before, _ = streams_of(chat)
    positions, levels = torch.tensor([[6, 5], [4, 3]]), torch.tensor([2.0, -3.0])
    with recentred(chat, 1, direction, positions, levels):
        after, _ = streams_of(chat)
    unit = direction / direction.norm()
    change = after[1] - before[1]
    for row in range(2):
        torch.testing.assert_close(after[1][row, positions[row]] @ unit, levels, atol=1e-4, rtol=1e-4)
    assert (change - (change @ unit).unsqueeze(-1) * unit).abs().max() < 1e-4
    assert change[0, :5].abs().max() == 0
    torch.testing.assert_close(after[0], before[0])


def test_zero_strength_is_the_identity_and_hooks_are_gone(chat, direction):
    """Nothing added is bitwise nothing; after the block the model is as before, even when it raised."""
    _, plain = streams_of(chat)
    with added(chat, 1, 0 * direction):
        _, unmoved = streams_of(chat)
    assert torch.equal(plain, unmoved)
    with pytest.raises(RuntimeError, match="stop"), ablated(chat, direction):
        raise RuntimeError("stop")
    _, after = streams_of(chat)
    assert torch.equal(plain, after)
