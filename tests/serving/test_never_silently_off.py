"""A guard that does not fire is a server that does not start."""

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from probes.errors import ServingError
from serving.offline.process import SMALL, free_port, guarded_command
from tests.serving.faults.plugins import with_plugin
from tests.serving.faults.server import faulty_command
from tests.serving.lab import MODEL
from tests.serving.server import FLAGS, SERVED_NAME, served
from tests.serving.world import BENIGN, MESSAGE, answer, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


UNIMPORTABLE = "tests.serving.faults.unimportable.Part"
FAULTS = "tests.serving.faults.at_start"
EAGER = ["--enforce-eager", "--max-num-batched-tokens", "16", "--max-num-seqs", "8"]


@pytest.fixture
def ended(reference, artifact, artifact_folder, tmp_path):
    """Return a function that starts a guarded server with faulty parts or a plugin, and returns the log of its end.

    The server must end by itself, with an error, and its port never have answered.
    """
    (tmp_path / "policy.yaml").write_text(policy_text(reference, artifact))

    def ended(parts: dict[str, str] | None = None, plugin: str = "", ranks: int = 1) -> str:
        port = free_port()
        flags = [*FLAGS, *EAGER, "--tensor-parallel-size", str(ranks)]
        command = guarded_command(MODEL, artifact_folder, tmp_path / "policy.yaml", port, flags)
        process = subprocess.run(
            faulty_command(command, parts or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**SMALL, **os.environ, **with_plugin(plugin, tmp_path), **THREADS[ranks]},
        )
        assert process.returncode != 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")
        return process.stdout + process.stderr

    return ended


THREADS = {1: {}, 2: {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}


@pytest.mark.parametrize(
    ("part", "fault", "says", "ranks"),
    [
        ("WORKER", "SilentTap", "tap_silent", 1),
        ("WORKER", "OtherNumbers", "gives the canary prompt other scores", 1),
        pytest.param("WORKER", "FlickeringTap", "tap_silent", 1, marks=pytest.mark.long),
        pytest.param("WORKER", "LostScores", "missing", 1, marks=pytest.mark.long),
        pytest.param("SCHEDULER", "LostVerdict", "no verdict", 1, marks=pytest.mark.long),
        pytest.param("WORKER", "DisagreeingRank", "rank 1: it read", 2, marks=pytest.mark.long),
        pytest.param("WORKER", "SilentRank", "rank 1: it read tap_silent", 2, marks=pytest.mark.long),
    ],
)
def test_a_guard_that_does_not_fire_opens_no_port(ended, part, fault, says, ranks):
    """The self-test finds the fault, says which, and the process ends with an error; the port never answered."""
    assert says in ended({part: f"{FAULTS}.{fault}"}, ranks=ranks)


@pytest.mark.long
@pytest.mark.parametrize("part", ["WORKER", "SCHEDULER", "MIDDLEWARE"])
def test_a_part_that_does_not_import_opens_no_port(ended, part):
    """Nothing is taken in its place: the import's own error ends the process."""
    assert "planted: this module does not import" in ended({part: UNIMPORTABLE})


@pytest.mark.long
@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        ("swap_worker", "missing"),
        ("swap_scheduler", "no verdict"),
        ("patch_scheduler", "no verdict"),
        ("override_model", "gives the canary prompt other scores"),
        ("override_load_format", "vllm.load_config.load_format: is 'dummy'"),
    ],
)
def test_a_plugin_that_takes_a_part_out_opens_no_port(ended, plugin, says):
    """Plugins come after every check of the flags; worker and self-test ask what came of them."""
    assert says in ended(plugin=plugin)


@pytest.mark.long
def test_a_server_without_its_middleware_answers_nobody(reference, artifact, artifact_folder, tmp_path):
    """Nothing shuts its port or tests it; but the engine knows of each request that it came by another way:
    unscored.
    """
    port = free_port()
    (tmp_path / "policy.yaml").write_text(policy_text(reference, artifact))
    command = guarded_command(MODEL, artifact_folder, tmp_path / "policy.yaml", port, [*FLAGS, *EAGER])
    plugged = with_plugin("drop_middleware", tmp_path)
    with served(faulty_command(command, {}), port, tmp_path / "log", plugged) as server:
        for messages in (BENIGN[0], *clearly_harmful(reference, artifact, 1)):
            for forged in ({}, {"vllm_xargs": {"foreguard": "x"}}, {"kv_transfer_params": {"foreguard": {}}}):
                reply = server.client().chat.completions.create(
                    model=SERVED_NAME, messages=messages, max_tokens=4, extra_body=forged
                )
                assert reply.usage.completion_tokens == 0
                assert not reply.choices[0].message.content
                assert "category_scores" not in reply.model_dump_json()
                assert "harm" not in reply.model_dump_json()
        assert not any(name.startswith("foreguard") for name in server.process.metrics())
        assert "came past the guard" in server.log.read_text()


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
