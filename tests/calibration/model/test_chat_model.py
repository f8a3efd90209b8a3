"""Models are taken apart by what their modules do, and read and edited where the names of things say."""

import pytest
import torch
from tiny import HIDDEN, LAYERS, make_model
from torch import nn
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
)

from calibration.model.arithmetic import VARIABLE, float32_is_faster
from calibration.model.chat_model import ChatModel, resolve_model
from calibration.model.structure import find_blocks, neurons_of
from calibration.prompts.batching import make_batch
from probes.errors import CalibrationError, ModelError

OTHERS = {
    "gpt2": lambda size: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
    "neox": lambda size: GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=size, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    ),
    "opt": lambda size: OPTForCausalLM(
        OPTConfig(
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            ffn_dim=48,
            word_embed_proj_dim=32,
        )
    ),
}


def test_blocks_and_writers_of_a_llama_are_found(chat):
    """The blocks are model.layers; the writers are every block's attention and MLP, and no norm."""
    layers = chat.model.model.layers
    assert chat.blocks == list(layers)
    assert chat.writers == [part for layer in layers for part in (layer.self_attn, layer.mlp)]


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_need_no_table_of_names(family, tokenizer):
    """GPT-2, GPT-NeoX and OPT keep blocks under other names and their writers in other shapes."""
    chat = ChatModel.wrap(OTHERS[family](len(tokenizer)), tokenizer)
    assert chat.num_layers == 3
    assert len(chat.writers) == 6


def test_a_model_without_a_list_of_blocks_is_refused(chat):
    """The error says what was looked for."""
    with pytest.raises(ModelError, match=f"no list of {LAYERS + 1} decoder blocks"):
        find_blocks(chat.model, LAYERS + 1, HIDDEN)
    with pytest.raises(ModelError, match=r"\[B, T, 99\]"):
        find_blocks(chat.model, LAYERS, 99)


def test_a_list_inside_each_block_is_not_taken_for_the_blocks(tokenizer):
    """As many experts per block as there are blocks: the larger list is the blocks."""
    model = make_model(len(tokenizer))
    for layer in model.model.layers:
        layer.mlp.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(LAYERS))
    assert find_blocks(model, LAYERS, HIDDEN) == list(model.model.layers)


def test_last_logits_are_those_of_the_whole_pass(chat):
    """Narrowing the head to one position changes none of its numbers, whatever the padding."""
    token_ids = [[1, 2, 40, 50, 60], [1, 2, 70]]
    batch = make_batch(token_ids, [0, 1], chat.device)
    logits = chat.last_logits(batch)
    for row, ids in enumerate(token_ids):
        whole = chat.model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(logits[row], whole, atol=1e-5, rtol=1e-5)


def test_a_model_that_takes_images_is_calibrated_on_its_text(tokenizer, tmp_path):
    """Its language model's blocks are found, and a text's logits are those of that model alone."""
    language = make_model(len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    config = LlavaConfig(
        text_config=language.config,
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=8
        ),
        image_token_index=0,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.save_pretrained(tmp_path)
    seeing = ChatModel.load(tmp_path)
    assert (seeing.num_layers, seeing.hidden_size) == (LAYERS, HIDDEN)
    batch = make_batch([[3, 4, 5], [6, 7]], [0, 1], seeing.device)
    torch.testing.assert_close(seeing.last_logits(batch), ChatModel.wrap(language, tokenizer).last_logits(batch))


def test_a_model_of_another_kind_is_refused(tokenizer, tmp_path):
    """The error says what it is, and not the hundreds of kinds that Transformers knows."""
    tokenizer.save_pretrained(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a vit, no language model") as refused:
        ChatModel.load(tmp_path)
    assert len(str(refused.value)) < 200


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    """The error names the folder and what to give instead."""
    with pytest.raises(ModelError, match="cannot be loaded"):
        ChatModel.load(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.fixture
def narrow(tokenizer, tmp_path):
    """The folder of a bfloat16 model."""
    make_model(len(tokenizer), dtype=torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_16_bit_model_computes_in_what_is_faster_or_said(narrow, monkeypatch):
    """Float32 holds the very weights; the environment decides, else the measurement, and `dtype` rounds in any case."""
    monkeypatch.setenv(VARIABLE, "native")
    own = ChatModel.load(narrow)
    assert own.arithmetic == torch.bfloat16
    assert ChatModel.load(narrow, dtype="float32").arithmetic == torch.float32
    monkeypatch.setenv(VARIABLE, "float32")
    wide = ChatModel.load(narrow)
    assert wide.arithmetic == torch.float32
    for first, second in zip(own.model.parameters(), wide.model.parameters(), strict=True):
        assert torch.equal(first.float(), second)
    monkeypatch.setenv(VARIABLE, "auto")
    faster = torch.float32 if float32_is_faster(torch.bfloat16) else torch.bfloat16
    assert ChatModel.load(narrow).arithmetic == faster
    assert ChatModel.load(narrow, arithmetic=torch.bfloat16).arithmetic == torch.bfloat16


def test_an_unknown_arithmetic_is_refused(narrow, monkeypatch):
    """The error names the variable and its values."""
    monkeypatch.setenv(VARIABLE, "double")
    with pytest.raises(CalibrationError, match="'double' is no arithmetic") as error:
        ChatModel.load(narrow)
    assert error.value.field == VARIABLE
    assert "native" in error.value.remedy


def test_a_model_whose_float32_weights_do_not_fit_keeps_its_own(narrow, monkeypatch):
    """Speed is no reason to run out of memory."""
    monkeypatch.setenv(VARIABLE, "float32")
    monkeypatch.setattr("calibration.model.arithmetic.too_large", lambda _model: "no room")
    assert ChatModel.load(narrow).arithmetic == torch.bfloat16


def test_the_down_projections_of_a_llama_are_found(chat):
    """Their inputs are the MLP's neurons, one module a block."""
    found = chat.down_projections()
    assert found == [layer.mlp.down_proj for layer in chat.model.model.layers]
    assert {neurons_of(module, chat.hidden_size) for module in found} == {48}


def test_asking_for_the_down_projections_runs_nothing(chat):
    """They were found when the model was wrapped: whoever asks within a pass of their own sees that pass alone."""
    passes = []
    handle = chat.model.register_forward_pre_hook(lambda *_: passes.append(None))
    try:
        assert chat.down_projections() == chat.down_projections()
    finally:
        handle.remove()
    assert not passes


@pytest.mark.parametrize("family", OTHERS)
def test_down_projections_are_found_by_structure_or_refused(family, tokenizer):
    """A family has one matrix a block that neurons go into, or it says that it has none."""
    chat = ChatModel.wrap(OTHERS[family](len(tokenizer)), tokenizer)
    found = chat.down_projections()
    assert len(found) == chat.num_layers
    assert all(neurons_of(module, chat.hidden_size) != chat.hidden_size for module in found)


def test_a_mixture_of_experts_has_no_neurons_that_every_token_passes(tokenizer):
    """It is refused with a remedy, not read at whichever expert came last."""
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    chat = ChatModel.wrap(MixtralForCausalLM(config), tokenizer)
    for _ in range(2):
        with pytest.raises(ModelError, match="no single down-projection"):
            chat.down_projections()
