"""Of vLLM's arguments only those may be given that somebody has looked at, and of some of them only some values."""

import json
from argparse import Namespace

import pytest

from probes.errors import ServingError
from serving.guarded_settings import SETTINGS
from serving.launch.guardable import require_guardable
from serving.launch.server import _parse
from serving.launch.vllm_arguments import ALLOWED, REFUSED
from serving.offline.recording import _engine
from tests.serving.lab import MODEL

BARE = [str(MODEL)]
REFUSED_FLAGS = {
    "--worker-cls": ["some.Worker"],
    "--scheduler-cls": ["some.Scheduler"],
    "--grpc": [],
    "--runner": ["pooling"],
    "--convert": ["embed"],
    "--speculative-config": [json.dumps({"method": "suffix", "num_speculative_tokens": 2})],
    "--spec-method": ["suffix"],
    "--pipeline-parallel-size": ["2"],
    "--decode-context-parallel-size": ["2"],
    "--prefill-context-parallel-size": ["2"],
    "--data-parallel-multi-port-external-lb": ["--data-parallel-size", "2", "--data-parallel-size-local", "2"],
    "--enable-elastic-ep": [],
    "--enable-dbo": [],
    "--ubatch-size": ["2"],
    "--kv-sharing-fast-prefill": [],
    "--enable-hc-sp": [],
    "--kv-transfer-config": [json.dumps({"kv_connector": "OffloadingConnector", "kv_role": "kv_both"})],
    "--kv-offloading-size": ["1"],
    "--kv-events-config": [json.dumps({"enable_kv_cache_events": True})],
    "--diffusion-config": [json.dumps({"canvas_length": 8})],
    "--load-format": ["dummy"],
    "--hf-overrides": [json.dumps({"rms_norm_eps": 0.1})],
    "--hf-config-path": ["elsewhere"],
    "--download-dir": ["elsewhere"],
    "--config-format": ["mistral"],
    "--quantization": ["fp8"],
    "--kv-cache-dtype": ["fp8"],
    "--trust-remote-code": [],
    "--tokenizer": ["another"],
    "--tokenizer-mode": ["slow"],
    "--default-chat-template-kwargs": [json.dumps({"enable_thinking": False})],
    "--chat-template-content-format": ["openai"],
    "--trust-request-chat-template": [],
    "--enable-prompt-embeds": [],
    "--enable-mm-embeds": [],
    "--enable-scale-out": [],
    "--tokens-only": [],
    "--enable-fault-tolerance": [],
    "--profiler-config": [json.dumps({"profiler": "torch", "torch_profiler_dir": "/tmp"})],  # noqa: S108
    "--logits-processors": ["some.Processor"],
    "--prefix-caching-hash-algo": ["xxhash"],
    "--enable-return-routed-experts": [],
    "--return-sampling-mask": [],
    "--default-mm-loras": [json.dumps({"image": "somewhere"})],
}
GUARDED = [
    [],
    ["--async-scheduling"],
    ["--tensor-parallel-size", "2"],
    ["--data-parallel-size", "2", "--api-server-count", "2"],
    ["--enable-lora", "--lora-modules", "a=somewhere", "--max-loras", "3", "--max-lora-rank", "8"],
    ["--speculative-config", json.dumps({"method": "ngram", "num_speculative_tokens": 2})],
    ["--speculative-config", json.dumps({"method": "draft_model", "model": "m", "num_speculative_tokens": 2})],
    ["--kv-transfer-config", json.dumps({"kv_connector": "ExampleConnector", "kv_role": "kv_both"})],
    ["--no-enable-prefix-caching", "--enforce-eager"],
    ["--compilation-config", json.dumps({"custom_ops": ["-rotary_embedding"]})],
    ["--attention-backend", "TRITON_ATTN"],
    ["--dtype", "bfloat16", "--load-format", "safetensors", "--model-impl", "transformers"],
    ["--served-model-name", "model", "--shutdown-timeout", "90", "--api-key", "k", "--allowed-origins", '["*"]'],
    ["--middleware", "some.Middleware", "--worker-extension-cls", "some.Extension", "--log-level", "INFO"],
    # Said, and the same as unsaid.
    ["--quantization", "None", "--kv-cache-dtype", "auto", "--tokenizer-mode", "auto", "--hf-overrides", "{}"],
]


def require(*flags: str) -> None:
    require_guardable(_parse([*BARE, *flags]), _parse(BARE))


@pytest.mark.parametrize("flag", REFUSED_FLAGS)
def test_what_is_not_guarded_is_refused(flag):
    """The error names the flag, the reason and what to do instead."""
    with pytest.raises(ServingError) as caught:
        require(flag, *REFUSED_FLAGS[flag])
    assert caught.value.field == flag
    assert caught.value.remedy


@pytest.mark.parametrize("flags", GUARDED)
def test_what_is_guarded_is_not_refused(flags):
    """Nothing that a test shows to be guarded is turned away, nor a default that somebody writes out."""
    require(*flags)


def test_arguments_from_a_file_are_looked_at_too(tmp_path):
    """VLLM's `--config` names a file with further arguments: they are refused as if they had been typed."""
    (tmp_path / "vllm.yaml").write_text("load-format: dummy\n")
    with pytest.raises(ServingError) as caught:
        require("--config", str(tmp_path / "vllm.yaml"))
    assert caught.value.field == "--load-format"


def test_every_argument_of_the_installed_vllm_has_been_looked_at():
    """A new one fails here until someone has put it into a group: may it be given, and why?"""
    known = set(vars(_parse(BARE))) - {"model_tag", "subparser"}  # which every command line has
    assert known - ALLOWED - REFUSED.keys() == set()
    # These are known without a default, or to another version.
    assert (ALLOWED | REFUSED.keys()) - known == {"logging_config", "log_level", "log_config_file", "monokernel"}
    assert ALLOWED & REFUSED.keys() == set()


def test_an_argument_that_nobody_has_looked_at_is_refused():
    """Whatever a version of vLLM to come has: it may be left at its default, and not be changed."""
    defaults = Namespace(**vars(_parse(BARE)), new_in_a_later_version=None)
    require_guardable(defaults, defaults)
    with pytest.raises(ServingError) as caught:
        require_guardable(Namespace(**{**vars(defaults), "new_in_a_later_version": True}), defaults)
    assert caught.value.field == "--new-in-a-later-version"


def test_every_refusal_of_a_value_is_tried_here():
    """But for what the installed vLLM does not know."""
    assert {each.flag for each in SETTINGS if each.argument} - set(REFUSED_FLAGS) == {"--compilation-config"}


@pytest.mark.parametrize(
    ("flag", "args"),
    [
        ("--compilation-config", {"compilation_config": Namespace(pass_config=Namespace(enable_sp=True))}),
        ("--compilation-config", {"compilation_config": Namespace(pass_config=Namespace(fuse_gemm_comms=True))}),
        ("--monokernel", {"monokernel": True}),
    ],
)
def test_what_other_versions_know_is_refused(flag, args):
    """Sequence parallelism by a compiler pass is in versions before 0.32, kernels of whole blocks in those after."""
    parsed = _parse(BARE)
    with pytest.raises(ServingError) as caught:
        require_guardable(Namespace(**{**vars(parsed), **args}), parsed)
    assert caught.value.field == flag


@pytest.mark.parametrize(
    "flag", ["--quantization", "--hf-overrides", "--load-format", "--kv-cache-dtype", "--tokenizer"]
)
def test_an_engine_that_calibrates_is_started_as_one_that_serves(flag):
    """What serving would refuse makes no artifact either."""
    with pytest.raises(ServingError) as caught:
        _engine([*BARE, "--max-model-len", "64", "--enforce-eager", flag, *REFUSED_FLAGS[flag]])
    assert caught.value.field == flag
