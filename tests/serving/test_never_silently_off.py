"""A guard that does not fire is a server that does not start."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from probes.errors import ServingError
from serving.process import SMALL, free_port, guarded_command
from tests.serving.lab import MODEL
from tests.serving.server import FLAGS, served
from tests.serving.world import MESSAGE, answer, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("part", "fault", "says", "ranks"),
    [
        ("WORKER", "SilentTap", "tap_silent", "1"),
        pytest.param("WORKER", "FlickeringTap", "not_finite", "1", marks=pytest.mark.long),
        pytest.param("WORKER", "LostScores", "missing", "1", marks=pytest.mark.long),
        ("SCHEDULER", "LostVerdict", "no verdict", "1"),
        pytest.param("WORKER", "DisagreeingRank", "rank 1: it read", "2", marks=pytest.mark.long),
        pytest.param("WORKER", "SilentRank", "did not run", "2", marks=pytest.mark.long),
    ],
)
def test_a_guard_that_does_not_fire_opens_no_port(
    part, fault, says, ranks, reference, artifact, artifact_folder, tmp_path
):
    """The self-test finds the fault, says which, and the process ends with an error; the port never answered."""
    (tmp_path / "policy.yaml").write_text(policy_text(reference, artifact))
    port = free_port()
    flags = [
        "--enforce-eager",
        "--max-num-batched-tokens",
        "16",
        "--max-num-seqs",
        "8",
        "--tensor-parallel-size",
        ranks,
    ]
    command = guarded_command(MODEL, artifact_folder, tmp_path / "policy.yaml", port, [*FLAGS, *flags])
    faulty = (
        f"import sys, serving.server as s; s.{part} = 'tests.serving.faults.at_start.{fault}';"
        f"from guard.cli import main; sys.argv = {command!r}; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", faulty],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**SMALL, **os.environ, **({"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if ranks == "2" else {})},
    )
    assert ended.returncode != 0
    assert says in ended.stdout + ended.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


@pytest.mark.parametrize("here", ["compiled"], indirect=True)
def test_a_stale_compile_cache_cannot_switch_the_guard_off(here, artifact_folder, cache_root, tmp_path):
    """A guarded graph has a cache key of its own; an unguarded one put under that key by force is not served with.

    Either vLLM notices that the graph is not the model's (on a CPU it compiles again) or the self-test does.
    """
    unguarded, guarded = _cached_graph(here.unguarded_log), _cached_graph(here.server.log)
    assert unguarded != guarded
    stale = tmp_path / "cache"
    shutil.copytree(cache_root, stale)
    shutil.rmtree(stale / guarded)
    shutil.copytree(stale / unguarded, stale / guarded)
    port = free_port()
    # The same command as before, down to the policy's path: all of it goes into the key.
    command = guarded_command(MODEL, artifact_folder, here.server.log.parent / "policy.yaml", port, FLAGS)
    environment = {"VLLM_CACHE_ROOT": str(stale)}
    log = tmp_path / "log"
    with suppress(ServingError), served(command, port, log, environment) as server:
        assert [answer(server.client(), messages) for messages in here.harmful] == [MESSAGE] * len(here.harmful)
    assert str(stale / guarded) in log.read_text(), "the stale graph was never looked at"
    assert "guard ready" in log.read_text() or "tap_silent" in log.read_text()


def _cached_graph(log: Path) -> str:
    """Return where a server saved its compiled graph, under the cache's root."""
    [folder] = set(re.findall(r"(torch_compile_cache/\S+?/[0-9a-f]{64})/\S*model", log.read_text()))
    return folder
