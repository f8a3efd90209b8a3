"""A fingerprint changes exactly when the model would compute something else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import BloomConfig, GPT2Config, MptConfig

from probes.errors import ArtifactMismatch, ModelError
from probes.fingerprint import fingerprint, read_chat_template

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "rope_theta": 10000.0,
    "dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path):
    """A model folder, as small as one can be: config, two shards, tokenizer, chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    for shard in (1, 2):
        save_file({"w": torch.full((4,), float(shard))}, folder / f"model-0000{shard}-of-00002.safetensors")
    return folder


def edit_config(model, **changes):
    """Change keys of config.json; None removes one."""
    config = {**json.loads((model / "config.json").read_text()), **changes}
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def flip_last_byte(path):
    """Change one bit of one weight."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_same_files_same_print(model, tmp_path):
    """A copy elsewhere, and a second reading, give an equal print, which `require` accepts."""
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    assert fingerprint(model) == fingerprint(model) == fingerprint(copy)
    fingerprint(model).require(fingerprint(copy))
    found = fingerprint(model)
    assert (found.architecture, found.num_layers, found.hidden_size, found.dtype) == (
        "LlamaForCausalLM",
        3,
        16,
        "bfloat16",
    )


CHANGES = {
    "weights": lambda model: flip_last_byte(model / "model-00002-of-00002.safetensors"),
    "tokenizer": lambda model: (model / "tokenizer.json").write_text("{}"),
    "chat_template": lambda model: (model / "chat_template.jinja").write_text("{{ other }}"),
    "dtype": lambda model: edit_config(model, dtype="float16"),
    "config": lambda model: edit_config(model, rope_theta=500000.0),
    "num_layers": lambda model: edit_config(model, num_hidden_layers=4),
    "hidden_size": lambda model: edit_config(model, hidden_size=32),
    "architecture": lambda model: edit_config(model, architectures=["MistralForCausalLM"]),
    "quantization": lambda model: edit_config(model, quantization_config={"quant_method": "fp8"}),
    "settings": lambda model: (model / "added_tokens.json").write_text('{"<extra>": 9}'),
}


@pytest.mark.parametrize("part", CHANGES)
def test_each_change_is_named(model, part):
    """The error says which part differs, and what to do about it."""
    before = fingerprint(model)
    CHANGES[part](model)
    with pytest.raises(ArtifactMismatch, match=f"{part}: artifact has") as caught:
        before.require(fingerprint(model))
    assert caught.value.field.startswith("fingerprint.")
    assert "calibrate" in caught.value.remedy


def test_every_difference_is_named_at_once(model):
    """A person mends two faults in one go."""
    before = fingerprint(model)
    CHANGES["weights"](model)
    CHANGES["dtype"](model)
    with pytest.raises(ArtifactMismatch, match=r"weights: .*; dtype: ") as caught:
        before.require(fingerprint(model))
    assert caught.value.field == "fingerprint.weights"


def test_what_changes_no_activation_changes_no_print(model):
    """The folder's former name, the library version that wrote it, and the order of keys are no part of the model."""
    before = fingerprint(model)
    edit_config(model, _name_or_path="elsewhere", transformers_version="9.9", use_cache=False)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
    assert fingerprint(model) == before


SETTINGS = {
    "tokenizer_config.json": {"add_bos_token": True},
    "special_tokens_map.json": {"bos_token": "<s>"},
    "added_tokens.json": {"<extra>": 9},
    "chat_template.json": {"chat_template": "{{ other }}"},
    "params.json": {"norm_eps": 0.1},
    "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_smaller_files_count_too(model, name):
    """What they say changes token ids, prompts or numbers: it has a digest, whatever order their keys are in."""
    before = fingerprint(model)
    (model / name).write_text(json.dumps(SETTINGS[name]))
    changed = fingerprint(model)
    assert [key for key, found in changed.model_dump().items() if found != before.model_dump()[key]] in (
        ["settings"],
        ["chat_template", "settings"],  # where the folder's own template was in the file
    )
    (model / name).write_text(json.dumps(SETTINGS[name], indent=4))
    assert fingerprint(model) == changed


def test_templates_for_tools_count_too(model):
    """Transformers takes one of several templates by what a request has."""
    before = fingerprint(model)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert fingerprint(model).settings != before.settings


def test_how_answers_are_sampled_does_not_count(model):
    """It changes no prompt and no number that is read off one; neither does where a tokenizer once lay."""
    before = fingerprint(model)
    (model / "generation_config.json").write_text('{"temperature": 0.1}')
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}", "name_or_path": "x"}))
    assert fingerprint(model) == before


def test_an_artifact_from_before_they_counted_fits(model):
    """Its fingerprint has no digest of them: they are not compared, and all else is."""
    older = fingerprint(model).model_copy(update={"settings": None})
    (model / "added_tokens.json").write_text('{"<extra>": 9}')
    older.require(fingerprint(model))
    CHANGES["weights"](model)
    with pytest.raises(ArtifactMismatch, match="weights"):
        older.require(fingerprint(model))


def test_swapped_shards_are_noticed(model):
    """Digests are bound to file names: the same bytes under other names are another model."""
    before = fingerprint(model)
    first, second = (model / f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2))
    first.rename(model / "x")
    second.rename(first)
    (model / "x").rename(second)
    assert fingerprint(model).weights != before.weights


def test_overrides_stand_in_for_the_folder(model):
    """A server's `--dtype` and `--chat-template` give the print of a folder that had them."""
    before = fingerprint(model)
    overridden = fingerprint(model, dtype="float16", chat_template="{{ other }}")
    CHANGES["dtype"](model)
    CHANGES["chat_template"](model)
    changed = fingerprint(model)
    assert overridden == changed
    assert overridden != before
    assert overridden.config == before.config


def test_chat_template_of_a_folder(model):
    """`chat_template.jinja` wins over tokenizer_config.json, as in transformers; several named templates count as
    one.
    """
    assert read_chat_template(model) == "{{ messages }}"
    (model / "chat_template.jinja").write_text("{{ jinja }}")
    assert read_chat_template(model) == "{{ jinja }}"
    (model / "chat_template.jinja").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "default", "template": "x"}]}))
    assert "default" in read_chat_template(model)
    (model / "tokenizer_config.json").unlink()
    assert read_chat_template(model) == ""


def test_older_and_nested_configs_are_understood(model):
    """`torch_dtype` of older models, and a multimodal model's `text_config`."""
    edit_config(model, dtype=None, torch_dtype="float16")
    assert fingerprint(model).dtype == "float16"
    nested = {"num_hidden_layers": 7, "hidden_size": 8, "dtype": "bfloat16"}
    edit_config(model, torch_dtype=None, num_hidden_layers=None, hidden_size=None, text_config=nested)
    found = fingerprint(model)
    assert (found.num_layers, found.hidden_size, found.dtype) == (7, 8, "bfloat16")


@pytest.mark.parametrize(
    "config",
    [GPT2Config(n_layer=5, n_embd=24), BloomConfig(n_layer=5, hidden_size=24), MptConfig(n_layers=5, d_model=24)],
    ids=lambda config: config.model_type,
)
def test_what_a_configuration_calls_otherwise_is_found(model, config):
    """As Transformers reads it."""
    config.save_pretrained(model)
    found = fingerprint(model)
    assert (found.num_layers, found.hidden_size) == (config.num_hidden_layers, config.hidden_size) == (5, 24)


def test_null_text_config_is_none_at_all(model):
    """A key that is written out as null means what its absence means."""
    (model / "config.json").write_text(json.dumps({**CONFIG, "text_config": None}))
    assert fingerprint(model).num_layers == CONFIG["num_hidden_layers"]


BROKEN = {
    "no config": lambda model: (model / "config.json").unlink(),
    "config is not JSON": lambda model: (model / "config.json").write_text("{"),
    "config is not an object": lambda model: (model / "config.json").write_text("[]"),
    "config is not text": lambda model: (model / "config.json").write_bytes(b"\xff\xfe\x00"),
    "no layers": lambda model: edit_config(model, num_hidden_layers=None),
    "no width": lambda model: edit_config(model, hidden_size=0),
    "text_config is a list": lambda model: edit_config(model, text_config=[1]),
    "no weights": lambda model: [path.unlink() for path in model.glob("*.safetensors")],
    "no tokenizer": lambda model: (model / "tokenizer.json").unlink(),
    "settings are not JSON": lambda model: (model / "added_tokens.json").write_text("{"),
    "template is not text": lambda model: (model / "chat_template.jinja").write_bytes(b"\xff\xfe"),
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_incomplete_folders_are_refused(model, fault):
    """Whatever is missing or malformed, the error is a `ModelError` with a remedy."""
    BROKEN[fault](model)
    with pytest.raises(ModelError) as caught:
        fingerprint(model)
    assert caught.value.remedy
