"""What vLLM resolved, whoever said so, is held against the model that the artifact was calibrated on."""

import json
import shutil
from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import EngineArgs

from probes.errors import ArtifactMismatch
from probes.fingerprint import fingerprint
from serving.config import GuardConfig
from serving.worker.resolved_config import require_calibrated, require_own_files
from serving.worker.worker import GuardedWorker, PlatformWorker
from tests.serving.lab import LAB, MODEL

OTHERWISE = {
    "hf_overrides": {"hf_overrides": {"rms_norm_eps": 0.1}},
    "tokenizer": {"tokenizer": str(LAB / "base")},
    "quantization": {"quantization": "fp8"},
    "kv_cache_dtype": {"kv_cache_dtype": "fp8"},
    "hf_config_path": {"hf_config_path": str(LAB / "base")},
    "trust_remote_code": {"trust_remote_code": True},
    "enable_prompt_embeds": {"enable_prompt_embeds": True},
}


class Loaded(Exception):
    """The model was about to be loaded."""


def resolved(model=MODEL, **changes):
    return EngineArgs(
        model=str(model), max_model_len=256, gpu_memory_utilization=0.1, enforce_eager=True, **changes
    ).create_engine_config()


@pytest.fixture(scope="module")
def calibrated():
    return fingerprint(MODEL)


def test_the_calibrated_model_is_taken(calibrated):
    """As it is, and with what is its own written out."""
    require_calibrated(resolved(), calibrated)
    require_calibrated(resolved(dtype="bfloat16", load_format="safetensors", tokenizer=str(MODEL)), calibrated)


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_stands_in_for_the_files_is_refused(name, calibrated):
    """For a server, and for an engine that only records: the error names the setting, its value and the remedy."""
    config = resolved(**OTHERWISE[name])
    for require in (lambda: require_calibrated(config, calibrated), lambda: require_own_files(config)):
        with pytest.raises(ArtifactMismatch) as caught:
            require()
        assert caught.value.field == f"vllm.{name}"
        assert str(next(iter(OTHERWISE[name].values()))) in caught.value.problem
        assert "calibrate" in caught.value.remedy


def test_another_precision_is_refused(calibrated):
    """By the fingerprint's name of it."""
    with pytest.raises(ArtifactMismatch, match="calibrated in bfloat16, the model is served in float32") as caught:
        require_calibrated(resolved(dtype="float32"), calibrated)
    assert caught.value.field == "fingerprint.dtype"


def test_a_quantised_checkpoint_is_taken_as_its_files_say(tmp_path):
    """Its own quantisation is part of the fingerprint; that of another is not."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    plain = fingerprint(model)
    config = json.loads((model / "config.json").read_text())
    method = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    quantised = resolved(model)
    assert quantised.model_config.quantization == "fp8"
    require_calibrated(quantised, fingerprint(model))
    with pytest.raises(ArtifactMismatch, match="quantization"):
        require_calibrated(resolved(), plain.model_copy(update={"quantization": "fp8"}))


def test_a_worker_asks_before_it_loads_anything(monkeypatch):
    """Minutes of loading come after, for every artifact: the model's and its adapters'."""
    done = []

    def load(_worker):
        done.append("loaded")
        raise Loaded

    artifacts = [SimpleNamespace(manifest=SimpleNamespace(fingerprint=name)) for name in ("model", "adapter")]
    config = SimpleNamespace(load_artifacts=lambda: artifacts)
    monkeypatch.setattr("serving.worker.worker.require_calibrated", lambda _config, found: done.append(found))
    monkeypatch.setattr("serving.worker.worker.require_guarded_config", lambda _config: done.append("settings"))
    monkeypatch.setattr(GuardConfig, "from_vllm", lambda _: config)
    monkeypatch.setattr(PlatformWorker, "load_model", load)
    worker = GuardedWorker.__new__(GuardedWorker)
    worker.vllm_config = SimpleNamespace(additional_config={})
    with pytest.raises(Loaded):
        worker.load_model()
    assert done == ["settings", "model", "adapter", "loaded"]
