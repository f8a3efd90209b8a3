"""The served taps read what Transformers computes, whatever the architecture; what cannot be guarded does not start."""

import re
from statistics import median

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from probes.artifact import Artifact
from probes.fingerprint import fingerprint
from probes.manifest import Manifest, Probe
from serving.config import GuardConfig
from tests.serving.architectures import checkpoint
from tests.serving.architectures.cases import CASES, UNSERVED, tolerance
from tests.serving.architectures.configs import LONGEST, UNGUARDED
from tests.serving.architectures.parity import EngineFailed, measure, serve

QUICK = ("gemma3-float32", "gpt-neox-float32", "cohere-bfloat16")
"""A stream in two parts with windows; a batch of one, which is the Transformers backend's; a whole stream beside a
decoy."""

IN_ONE_CHUNK = ("--enforce-eager", "--dtype", "float32", "--max-num-batched-tokens", str(LONGEST))


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=() if key in QUICK else pytest.mark.long) for key in CASES if key not in UNSERVED]
)
def test_served_taps_read_what_transformers_computes(key, tmp_path):
    """Every prompt at every block, and its neurons where the block has them; chunked and batched prompts too."""
    case = CASES[key]
    parity, within = measure(case, tmp_path), tolerance(case)
    assert len(parity.neurons) > 0 or parity.without_neurons
    for errors in filter(None, (parity.streams, parity.neurons)):
        assert median(errors) < within.median
        assert max(errors) < within.worst


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("key", UNSERVED)
def test_what_vllm_does_not_serve_here_is_known(key, tmp_path):
    """By the error that says so: when it is gone, the case belongs in the matrix."""
    with pytest.raises(EngineFailed, match=re.escape(UNSERVED[key])):
        measure(CASES[key], tmp_path)


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("bert", AutoModel, r"ServingError: vllm\.model_config\.runner_type: is 'pooling': "),
        pytest.param("mamba", AutoModelForCausalLM, "ModelError: model: ", marks=pytest.mark.long),
        pytest.param("mamba2", AutoModelForCausalLM, "ModelError: model: ", marks=pytest.mark.long),
    ],
)
def test_a_model_without_a_context_in_its_cache_is_refused(name, kind, error, tmp_path):
    """The guarded worker stops at start-up, and its error names the field and the remedy."""
    model = tmp_path / "model"
    checkpoint.save(UNGUARDED[name].config(), model, kind=kind)
    (model / "tokenizer.json").write_text("{}")
    config = one_probe(model, tmp_path / "artifact")
    with pytest.raises(EngineFailed, match=rf"^probes\.errors\.{error}.* remedy: "):
        serve(tmp_path, [[1]], IN_ONE_CHUNK, config.to_vllm(), worker="serving.worker.worker.GuardedWorker")


def one_probe(model, folder):
    """Write an artifact of one probe on the first block; return the configuration of a worker that it guards."""
    found = fingerprint(model)
    manifest = Manifest(name="one", created="", fingerprint=found, probes=(Probe(name="p", method="m", layers=(0,)),))
    tensors = {"probe.p.weight": torch.ones(1, 1, found.hidden_size)}
    tensors |= {f"scores.{kind}": torch.zeros(1, 1) for kind in ("harmless", "harmful")}
    Artifact(manifest, tensors).save(folder)
    digest = Artifact.load(folder).manifest.digest
    return GuardConfig(artifact=folder, artifact_digest=digest, policy=folder / "none.yaml")
