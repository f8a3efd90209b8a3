"""Heads are found by what depends on what, whatever a family calls its parts, and taken out one at a time."""

import pytest
import torch
from tiny import make_model
from torch import nn
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from calibration.model.attention_heads import Head, all_heads, find_attentions, without_heads
from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import make_batch
from probes.errors import ModelError

HEADS = 4
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
WIDE = SHAPE | {"intermediate_size": 48}
GROUPED = WIDE | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": lambda size: make_model(size, num_hidden_layers=2, num_key_value_heads=2, attn_implementation="eager"),
    "gpt2": lambda size: GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=HEADS, n_positions=64, attn_implementation="eager")
    ),
    "neox": lambda size: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=size, **WIDE)),
    "opt": lambda size: OPTForCausalLM(OPTConfig(vocab_size=size, ffn_dim=48, word_embed_proj_dim=32, **SHAPE)),
    "phi3": lambda size: Phi3ForCausalLM(Phi3Config(vocab_size=size, pad_token_id=0, **GROUPED)),
    "qwen3": lambda size: Qwen3ForCausalLM(Qwen3Config(vocab_size=size, head_dim=16, **GROUPED)),
    "mixtral": lambda size: MixtralForCausalLM(
        MixtralConfig(vocab_size=size, num_local_experts=4, num_experts_per_tok=2, **GROUPED)
    ),
    "falcon": lambda size: FalconForCausalLM(FalconConfig(vocab_size=size, new_decoder_architecture=False, **SHAPE)),
}


def weights_of(chat):
    """The attention weights `[L][H, T, T]` of one prompt, as the model itself tells them."""
    output = chat.model(torch.tensor([[1, 2, 40, 50, 60, 3, 4]]), output_attentions=True, use_cache=False)
    return [weights[0].detach() for weights in output.attentions]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_without_its_queries_attends_to_all_alike(family, tokenizer):
    """Split or fused, grouped or normed: the head's weights become 1/t, and the other heads of its block keep
    theirs.
    """
    torch.manual_seed(0)
    model = FAMILIES[family](len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)  # so that no head is near uniform by itself
    chat = ChatModel.wrap(model, tokenizer)
    attentions = find_attentions(chat)
    assert all_heads(attentions) == [Head(block, index) for block in range(2) for index in range(HEADS)]
    before = weights_of(chat)
    uniform = torch.ones(7, 7).tril() / torch.arange(1, 8).unsqueeze(1)
    for index in range(HEADS):
        assert (before[1][index] - uniform).abs().max() > 0.05
        with without_heads(attentions, [Head(1, index)]):
            after = weights_of(chat)
        torch.testing.assert_close(after[1][index], uniform)
        others = [other for other in range(HEADS) if other != index]
        torch.testing.assert_close(after[1][others], before[1][others])
        torch.testing.assert_close(after[0], before[0])


def logits_of(chat):
    """The next-token logits of one prompt."""
    return chat.last_logits(make_batch([[1, 2, 40, 50, 60, 3, 4]], [0], chat.device))


def test_a_silenced_head_is_one_whose_output_weights_are_zero(chat):
    """The hook and the weights edited by hand give the same logits, for two heads at once; afterwards all is as
    before.
    """
    attentions = find_attentions(chat)
    before = logits_of(chat)
    with without_heads(attentions, [Head(0, 1), Head(2, 3)], "silenced"):
        by_hook = logits_of(chat)
    assert torch.equal(before, logits_of(chat))
    with torch.no_grad():
        chat.model.model.layers[0].self_attn.o_proj.weight[:, 8:16] = 0
        chat.model.model.layers[2].self_attn.o_proj.weight[:, 24:32] = 0
    torch.testing.assert_close(by_hook, logits_of(chat))
    assert (by_hook - before).abs().max() > 1e-3


def test_what_a_head_reads_is_its_own_queries_and_its_groups_keys_and_values(tokenizer):
    """Under grouped-query attention heads 2 and 3 share the second keys and values, and nothing else."""
    chat = ChatModel.wrap(make_model(len(tokenizer), num_key_value_heads=2), tokenizer)
    attention, block = find_attentions(chat)[1], chat.model.model.layers[1].self_attn
    assert attention.output is block.o_proj
    for index, group in ((2, 1), (3, 1), (0, 0)):
        found = {module: columns.tolist() for module, columns in attention.sources[index].items()}
        shared = list(range(8 * group, 8 * group + 8))
        assert found == {
            block.q_proj: list(range(8 * index, 8 * index + 8)),
            block.k_proj: shared,
            block.v_proj: shared,
        }


def test_planted_weights_do_not_hide_the_heads(planted_chat):
    """A block whose queries and keys are all zero still has four heads: structure is read, not values."""
    attention = find_attentions(planted_chat)[0]
    assert [columns.tolist() for each in attention.queries for columns in each.values()] == [
        list(range(start, start + 8)) for start in range(0, 32, 8)
    ]


def test_a_model_without_heads_is_refused(tokenizer):
    """A state-space model is named as what it is not, and so is an attention that the configuration miscounts."""
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    config.num_attention_heads = 4
    with pytest.raises(ModelError, match="heads can be told apart") as caught:
        find_attentions(ChatModel.wrap(MambaForCausalLM(config), tokenizer))
    assert caught.value.field == "model"
    miscounted = ChatModel.wrap(make_model(len(tokenizer)), tokenizer)
    miscounted.model.config.num_attention_heads = 3
    with pytest.raises(ModelError, match="block 0"):
        find_attentions(miscounted)


def test_parts_that_never_run_are_no_obstacle(chat):
    """A matrix that lies in a block unused, as adapters may, changes nothing."""
    chat.blocks[0].spare = nn.Linear(32, 32)
    assert len(find_attentions(chat)) == 3
