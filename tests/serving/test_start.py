"""What is wrong before the start is said before a port is opened or a model is loaded."""

import json
import shutil
import socket
import subprocess
from dataclasses import replace

import pytest

from probes.artifact import MANIFEST, TENSORS, Artifact
from probes.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactMismatch,
    ForeguardError,
    ModelError,
    PolicyError,
    SchemaTooNew,
    ServingError,
)
from serving.launch.server import Launch, serve
from serving.offline.process import free_port, guarded_command
from serving.settings import BODY_TIMEOUT, MAX_BODY, METRICS_KEY, READY_AGE
from tests.serving.adapter import make_adapter
from tests.serving.lab import MODEL
from tests.serving.world import policy_text


@pytest.fixture
def launch(reference, artifact, artifact_folder, tmp_path):
    """Return a function that tries to serve, with parts replaced; the parts are copies that a test may spoil."""
    shutil.copytree(artifact_folder, tmp_path / "artifact")
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "policy.yaml").write_text(policy_text(reference, artifact))

    def launch(*vllm: str, port: int | None = None, adapters: dict | None = None) -> None:
        serve(
            Launch(
                model=str(tmp_path / "model"),
                artifact=tmp_path / "artifact",
                policy=tmp_path / "policy.yaml",
                host="127.0.0.1",
                port=port or free_port(),
                vllm=vllm,
                adapters=adapters or {},
            )
        )

    return launch


def refused(kind: type[ForeguardError], launch, *vllm: str, says: str, **options) -> None:
    with pytest.raises(kind, match=says) as caught:
        launch(*vllm, **options)
    assert caught.value.field
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("setting", "value"), [(READY_AGE, "soon"), (MAX_BODY, "64MiB"), (BODY_TIMEOUT, "0"), (METRICS_KEY, "short")]
)
def test_a_setting_that_is_none_is_refused(launch, monkeypatch, setting, value):
    """Before the model is loaded, by the variable's name."""
    monkeypatch.setenv(setting, value)
    refused(ServingError, launch, says=setting)


def test_one_key_to_ask_and_to_read_scores_is_refused(launch, monkeypatch):
    """Whoever may ask would read how far each request of theirs is from a block."""
    monkeypatch.setenv(METRICS_KEY, "one-key-for-all-of-it")
    refused(ServingError, launch, "--api-key", "another", "one-key-for-all-of-it", says=METRICS_KEY)


def test_a_truncated_artifact_is_refused(launch, tmp_path):
    """Half a tensor file is not an artifact."""
    tensors = tmp_path / "artifact" / TENSORS
    tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])
    refused(ArtifactCorrupt, launch, says="not the file that the manifest describes")


def test_a_tampered_manifest_is_refused(launch, tmp_path):
    """A bias changed by hand does not go unnoticed."""
    manifest = tmp_path / "artifact" / MANIFEST
    content = json.loads(manifest.read_text())
    content["probes"][0]["bias"] -= 100
    manifest.write_text(json.dumps(content))
    refused(ArtifactCorrupt, launch, says="changed after it was written")


def test_a_newer_schema_is_refused(launch, tmp_path):
    """What a newer version wrote is not guessed at."""
    manifest = tmp_path / "artifact" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    refused(SchemaTooNew, launch, says="99")


@pytest.mark.parametrize("keys", [{"operator": "ablate"}, {"evaluation_only": True}])
def test_an_artifact_that_ablates_is_refused(launch, tmp_path, keys):
    """A vector that takes a direction out of the model is for measuring: no server runs it, whole as the artifact
    is.
    """
    loaded = Artifact.load(tmp_path / "artifact")
    vector, *others = loaded.manifest.steering
    steering = (vector.model_copy(update=keys), *others)
    replace(loaded, manifest=loaded.manifest.model_copy(update={"steering": steering})).save(tmp_path / "artifact")
    refused(ArtifactError, launch, says="no server runs")


def test_another_models_artifact_is_refused(launch, tmp_path):
    """One byte of the weights makes it another model."""
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused(ArtifactMismatch, launch, says="weights")


def test_another_chat_template_is_refused(launch, tmp_path):
    """A template given on the command line counts, in the folder or not."""
    (tmp_path / "other.jinja").write_text("{{ messages[0].content }}")
    refused(ArtifactMismatch, launch, "--chat-template", str(tmp_path / "other.jinja"), says="chat_template")


@pytest.mark.parametrize("action", ["block", "flag"])
def test_an_artifact_that_knows_no_template_is_refused(launch, tmp_path, action):
    """The form of a request would change its verdict: the policy must say that it lets that pass."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy.read_text().replace("off_template: allow", f"off_template: {action}"))
    refused(PolicyError, launch, says="off_template")


def test_a_policy_that_refuses_special_tokens_needs_to_know_them(launch, tmp_path):
    """This artifact does not."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"{policy.read_text()}special_tokens: refuse\n")
    refused(PolicyError, launch, says="special_tokens")


def test_a_policy_that_names_an_unknown_probe_is_refused(launch, tmp_path):
    """The error names the rule, and the probes that there are."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(policy.read_text().replace("harm: {above", "harmm: {above"))
    refused(PolicyError, launch, says="harmm")


def test_a_model_that_is_not_there_is_refused(launch, tmp_path):
    """A path that leads nowhere is not looked up on a hub."""
    shutil.rmtree(tmp_path / "model")
    refused(ModelError, launch, says="neither a folder nor")


def test_a_port_in_use_is_refused(launch):
    """The port is tried before minutes are spent on loading a model."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(ForeguardError, launch, says="cannot listen", port=taken.getsockname()[1])


@pytest.mark.parametrize(
    "flags",
    [
        ["--worker-cls", "some.Worker"],
        ["--scheduler-cls", "some.Scheduler"],
        ["--pipeline-parallel-size", "2"],
        ["--speculative-config", '{"method": "suffix", "num_speculative_tokens": 2}'],
        ["--decode-context-parallel-size", "2"],
        ["--enable-dbo"],
        ["--runner", "pooling"],
        ["--load-format", "dummy"],
    ],
)
def test_what_the_guard_cannot_watch_is_refused(launch, flags):
    """A flag that would take the guard out, or around it, stops the start."""
    refused(ForeguardError, launch, *flags, says="guard")


@pytest.mark.parametrize(
    "flags",
    [
        ["--hf-overrides", '{"rms_norm_eps": 0.1}'],
        ["--quantization", "fp8"],
        ["--tokenizer", "another"],
        ["--default-chat-template-kwargs", '{"enable_thinking": false}'],
    ],
)
def test_what_makes_another_model_of_it_is_refused(launch, flags):
    """The files are the artifact's; what vLLM would make of them is not."""
    refused(ServingError, launch, *flags, says="calibrated on")


def test_a_variable_that_leads_around_the_guard_is_refused(launch, monkeypatch):
    """Before anything is read."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    refused(ServingError, launch, says="VLLM_SERVER_DEV_MODE: is 1, but it opens routes")


@pytest.mark.parametrize("action", ["flag", "allow"])
def test_an_adapter_that_would_lead_around_the_guard_is_refused(launch, tmp_path, action):
    """Whoever names it would be answered unscored: such a policy needs an artifact for each."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"{policy.read_text()}on_unscored: {action}\n")
    flags = ["--enable-lora", "--lora-modules", f"polite={tmp_path}"]
    refused(PolicyError, launch, *flags, says="polite has no artifact")


def test_a_pin_is_the_model_s_artifact(launch, tmp_path):
    """A policy for another one stops the start, and names both."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(f'{policy.read_text()}artifact: "{"0" * 64}"\n')
    refused(PolicyError, launch, says="the policy is for artifact 000000000000")


def test_an_adapter_that_is_not_served_is_refused(launch, tmp_path):
    """The error names those that are."""
    flags = ["--enable-lora", "--lora-modules", f"polite={tmp_path}"]
    refused(ServingError, launch, *flags, says="no adapter is served as 'rude'", adapters={"rude": tmp_path})


def test_an_adapter_with_the_model_s_own_artifact_is_refused(launch, reference, tmp_path):
    """An adapter makes another model of it: the artifact's fingerprint must be the adapted one's."""
    make_adapter(reference, tmp_path / "lora", seed=1)
    flags = ["--enable-lora", "--lora-modules", f"polite={tmp_path / 'lora'}"]
    refused(ArtifactMismatch, launch, *flags, says="lora", adapters={"polite": tmp_path / "artifact"})


def test_the_command_says_what_and_how_and_ends_with_status_2(artifact_folder, tmp_path):
    """The command line prints the field, the problem and the remedy, and no traceback."""
    (tmp_path / "policy.yaml").write_text(
        "name: x\nversion: '1'\nrules:\n  - {name: a, action: blok, when: {harm: {above: 1}}}\n"
    )
    command = guarded_command(MODEL, artifact_folder, tmp_path / "policy.yaml", free_port())
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "policy.yaml:4" in ended.stderr
    assert "remedy" in ended.stderr
    assert "Traceback" not in ended.stderr
