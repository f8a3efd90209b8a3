"""A GGUF file becomes a model folder that computes what was in the file."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.errors import ModelError
from serving.launch import gguf_file
from serving.launch.gguf_file import convert
from tests.calibration.tiny import make_model, make_tokenizer

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Of a Llama's block: Transformers' names, and llama.cpp's."""


def interleaved(weight, heads):
    """Queries and keys as llama.cpp has them: the halves of each head's rows taken in turn."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer):
    """Write a tiny Llama as llama.cpp's own converter would, with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values, part = tensor.float().numpy(), name.removesuffix(".weight")
        if part.startswith("model.layers."):
            number, _, inner = part.removeprefix("model.layers.").partition(".")
            values = interleaved(values, heads[inner]) if inner in heads else values
            writer.add_tensor(f"blk.{number}.{NAMES[inner]}.weight", np.ascontiguousarray(values))
        else:
            known = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            writer.add_tensor(f"{known[part]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_gguf(tmp_path):
    """A tiny chat model's file, and the model."""
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer)).float()
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    return tmp_path / "tiny.gguf", model, tokenizer


def test_the_folder_computes_what_the_file_does(tiny_gguf, tmp_path):
    """The same logits up to bfloat16, the same chat template, and a length that the tokenizer knows."""
    source, model, tokenizer = tiny_gguf
    folder = convert(source, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        ours, theirs = loaded.float()(tokens).logits, model(tokens).logits
    assert (ours - theirs).abs().max() < 0.02 * theirs.abs().max()
    read = AutoTokenizer.from_pretrained(folder)
    assert read.chat_template == tokenizer.chat_template
    assert read.model_max_length == model.config.max_position_embeddings
    assert not list(tmp_path.glob("*.part"))
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1, "whoever may read one file may read all"


def test_a_folder_that_is_there_is_left_alone(tiny_gguf, tmp_path):
    """Nothing in it changes."""
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="is there already") as caught:
        convert(tiny_gguf[0], tmp_path / "model")
    assert caught.value.field == "--out"
    assert not list((tmp_path / "model").iterdir())


def test_a_place_that_cannot_be_written_is_an_error(tiny_gguf, tmp_path):
    """A file stands where a folder would: it says so, and leaves nothing behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written") as caught:
        convert(tiny_gguf[0], tmp_path / "file" / "model")
    assert caught.value.field == "--out"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"", "is no GGUF file"),
        (b"PK\x03\x04", "is no GGUF file"),
        (b"GGUF\x00", "cannot read"),
    ],
)
def test_what_is_no_model_is_an_error(tmp_path, content, says):
    """It says what is wrong with the file, and what to name instead."""
    source = tmp_path / "model.gguf"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        convert(source, tmp_path / "out")
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_chat_template_is_an_error(tmp_path):
    """A base model has no template that prompts could be calibrated in."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    write_gguf(tmp_path / "base.gguf", make_model(len(tokenizer)).float(), tokenizer)
    with pytest.raises(ModelError, match="no chat template"):
        convert(tmp_path / "base.gguf", tmp_path / "out")


def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch):
    """They are no part of what every user needs."""
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="gguf and accelerate") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert caught.value.remedy == "pip install gguf accelerate"
