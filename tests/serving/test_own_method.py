"""A probe method of somebody else's package is found, fitted, certified, and served by a live server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.prompts.splits import SPLITS
from probes.artifact import Artifact
from serving.offline.process import free_port, guarded_command
from tests.own_package import write_package
from tests.serving.lab import MODEL, prompts
from tests.serving.server import FLAGS, SERVED_NAME, served

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

POLICY = """\
name: own
version: "1"
rules:
  - {name: loud, action: block, when: {contrast: {above: {target_fpr: 0.01}}}}
"""


@pytest.fixture(scope="module")
def artifact_of_own(tmp_path_factory):
    """An artifact of the lab model by CONTRIBUTING's method alone, on every fourth prompt."""
    package, work = write_package(tmp_path_factory.mktemp("own")), tmp_path_factory.mktemp("made")
    options = ["--out", work / "artifact", "--only", "contrast", "--forms", "0"]
    for split in SPLITS:
        (work / split).write_text("".join(json.dumps(each) + "\n" for each in prompts(split)[::4]))
        options += [f"--{split}", work / split]
    foreguard = Path(sys.executable).with_name("foreguard")
    environment = {**os.environ, "PYTHONPATH": str(package)}
    subprocess.run([foreguard, "calibrate", MODEL, *options], env=environment, check=True, capture_output=True)
    return work / "artifact"


def test_an_own_method_guards_a_server(artifact_of_own, cache_root, tmp_path):
    """The server needs the artifact and not the package; it blocks harmful prompts, and lets harmless ones through."""
    assert [probe.name for probe in Artifact.load(artifact_of_own).manifest.probes] == ["contrast"]
    (tmp_path / "policy.yaml").write_text(POLICY)
    port = free_port()
    command = guarded_command(MODEL, artifact_of_own, tmp_path / "policy.yaml", port, [*FLAGS, "--enforce-eager"])
    with served(command, port, tmp_path / "log", {"VLLM_CACHE_ROOT": str(cache_root)}) as server:
        blocked = {
            label: [_is_blocked(server, messages) for messages in _first(label)] for label in ("harmful", "harmless")
        }
    assert sum(blocked["harmful"]) > 5
    assert sum(blocked["harmless"]) <= 1


def _first(label, most=20):
    rows = [each for each in prompts("test") if each["label"] == label][:most]
    return [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows]


def _is_blocked(server, messages):
    [choice] = server.client().chat.completions.create(model=SERVED_NAME, messages=messages, max_tokens=1).choices
    return choice.finish_reason == "content_filter"
