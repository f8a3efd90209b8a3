"""A guard that does not fire is a server that does not start."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
    ended, url = _ended_without_serving(
        f"import serving.server as s; s.{part} = 'tests.serving.faults.{fault}'",
        policy_text(reference, artifact),
        artifact_folder,
        tmp_path,
        "--enforce-eager",
    )
    assert says in ended
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize("here", ["compiled"], indirect=True)
def test_a_stale_compile_cache_cannot_switch_the_guard_off(
    here, reference, artifact, artifact_folder, cache_root, tmp_path
):
    """A guarded graph has a cache key of its own; an unguarded graph put under that key by force is found at start-up."""
    unguarded, guarded = _cached_graph(here.unguarded_log), _cached_graph(here.server.log)
    assert unguarded != guarded
    stale = tmp_path / "cache"
    shutil.copytree(cache_root, stale)
    shutil.rmtree(stale / guarded)
    shutil.copytree(stale / unguarded, stale / guarded)
    ended, url = _ended_without_serving(
        f"import os; os.environ['VLLM_CACHE_ROOT'] = {str(stale)!r}",
        policy_text(reference, artifact),
        artifact_folder,
        tmp_path,
    )
    assert "tap_silent" in ended
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def _cached_graph(log: Path) -> str:
    """Return where a server saved its compiled graph, under the cache's root."""
    [folder] = set(re.findall(r"(torch_compile_cache/\S+?/[0-9a-f]{64})/\S*model", log.read_text()))
    return folder


def _ended_without_serving(first: str, policy: str, artifact: Path, folder: Path, *vllm: str) -> tuple[str, str]:
    """Run `first`, then serve, in a process that must end with an error. Returns what it said, and its URL."""
    (folder / "policy.yaml").write_text(policy)
    port = free_port()
    command = guarded_command(MODEL, artifact, folder / "policy.yaml", port, [*FLAGS, *vllm])
    ended = subprocess.run(
        [sys.executable, "-c", f"{first}; import sys; sys.argv = {command!r}; from guard.cli import main; main()"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**SMALL, **os.environ},
    )
    assert ended.returncode != 0
    return ended.stdout + ended.stderr, f"http://127.0.0.1:{port}"
