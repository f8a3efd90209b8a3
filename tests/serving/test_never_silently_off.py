"""A guard that does not fire is a server that does not start."""

import os
import subprocess
import sys

import httpx
import pytest

from serving.process import SMALL, free_port, guarded_command
from tests.serving.lab import MODEL
from tests.serving.server import FLAGS
from tests.serving.world import policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("part", "fault", "says"),
    [
        ("WORKER", "SilentTap", "tap_silent"),
        ("WORKER", "LostScores", "missing"),
        ("SCHEDULER", "LostVerdict", "no verdict"),
    ],
)
def test_a_guard_that_does_not_fire_opens_no_port(part, fault, says, reference, artifact, artifact_folder, tmp_path):
    """The self-test finds the fault, says which, and the process ends with an error; the port never answered."""
    (tmp_path / "policy.yaml").write_text(policy_text(reference, artifact))
    port = free_port()
    command = guarded_command(MODEL, artifact_folder, tmp_path / "policy.yaml", port, [*FLAGS, "--enforce-eager"])
    faulty = (
        f"import sys, serving.server as s; s.{part} = 'tests.serving.faults.{fault}';"
        f"from guard.cli import main; sys.argv = {command!r}; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", faulty],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**SMALL, **os.environ},
    )
    assert ended.returncode != 0
    assert says in ended.stdout + ended.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
