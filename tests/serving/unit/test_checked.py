"""What the launch has read must be what the processes that it starts find."""

import json
import shutil

import pytest

from guard.policy import Policy
from probes.errors import ArtifactMismatch, PolicyError
from serving.checked import VARIABLE, Checked, require_files, require_policy
from serving.config import GuardConfig
from tests.serving.unit.conftest import POLICY

RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 2}}}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment that the test leaves as it was."""
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture
def model(tmp_path):
    """A folder with what vLLM reads, and what it does not."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "README.md"):
        (folder / name).write_text("before")
    return folder


def policy(version="1"):
    return Policy.model_validate({"name": "p", "version": version, "rules": [RULE]})


def test_nothing_was_checked_where_nobody_launched(model):
    """An engine without a launch, as tests and calibration have it, or on another machine: there is nothing to
    compare.
    """
    require_policy(policy())
    require_files()


def test_what_did_not_change_is_taken(model):
    """Also where a file changed that vLLM does not read."""
    Checked.begin([model]).with_policy(policy()).publish()
    (model / "README.md").write_text("another")
    require_policy(policy())
    require_files()


def test_another_policy_is_refused():
    """By what it says, and not by how its file is written."""
    Checked.begin([]).with_policy(policy()).publish()
    with pytest.raises(PolicyError, match="changed while the server was starting"):
        require_policy(policy("2"))


CHANGES = {
    "rewritten": lambda model: (model / "config.json").write_text("after, longer"),
    "rewritten at the same length": lambda model: (model / "config.json").write_text("behind"),
    "replaced": lambda model: shutil.copy(model / "README.md", model / "x.safetensors"),
    "exchanged, with its time": lambda model: (
        shutil.copy2(model / "model.safetensors", model / "copy"),
        (model / "copy").replace(model / "model.safetensors"),
    ),
    "gone": lambda model: (model / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_files_that_changed_meanwhile_are_refused(model, kind):
    """The error names the folder."""
    Checked.begin([model]).with_policy(policy()).publish()
    CHANGES[kind](model)
    with pytest.raises(ArtifactMismatch, match="changed") as caught:
        require_files()
    assert caught.value.field == str(model)


def test_a_new_launch_forgets_the_last_one(model):
    """A policy that was changed between two starts is no change while one starts."""
    Checked.begin([model]).with_policy(policy()).publish()
    Checked.begin([model])
    require_policy(policy("2"))


def test_every_process_asks(config, monkeypatch):
    """Gate and API server bind the policy through the configuration, which compares it; comments and order do not
    count.
    """
    made = config()
    artifact = made.load_artifact()
    Checked.begin([]).with_policy(made.bind_policy(artifact).policy).publish()
    made.policy.write_text(f"# A comment.\n{POLICY}")
    assert [bound.policy.version for bound in made.bind_policies([artifact]).base.subjects] == ["1"]
    made.policy.write_text(POLICY.replace("above: 2", "above: 200"))
    for bind in (lambda: made.bind_policy(artifact), lambda: made.bind_policies([artifact])):
        with pytest.raises(PolicyError, match="changed"):
            bind()


def test_the_policy_s_content_is_not_in_vllm_s_configuration(config):
    """It would go into the compile cache's key: a new policy would compile the model anew."""
    first, second = config(), config(POLICY.replace("above: 2", "above: 200"))
    assert first.to_vllm() == second.to_vllm()
    assert json.dumps(first.to_vllm())
    assert GuardConfig.from_vllm(second.to_vllm()) == first
