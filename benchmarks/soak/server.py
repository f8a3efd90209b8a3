"""The soak's server: the guarded lab model with the soak's insiders in it, and looks at it from outside."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cost.servers import ENVIRONMENT, ONE_ENGINE_PROCESS
from benchmarks.cost.subjects import MODEL
from benchmarks.soak.books import Reading
from benchmarks.soak.insider_api import CENSUS, LEDGER
from benchmarks.soak.processes import usage
from benchmarks.soak.rest import Rest
from probes.errors import ServingError
from serving.offline.process import ServerProcess, free_port, guarded_command, running

_ROOT = Path(__file__).parents[2]
_INSIDERS = [
    *("--middleware", "benchmarks.soak.insider_api.SoakMiddleware"),
    *("--worker-extension-cls", "benchmarks.soak.insider_engine.SoakExtension"),
]
_SIZES = [
    *("--max-model-len", "1024"),
    # Fewer sequences than requests, so that some always wait; prompts come in chunks when many decode.
    *("--max-num-seqs", "48", "--max-num-batched-tokens", "512"),
    # A KV cache of 128 blocks of 128 tokens is soon full, and its blocks are evicted. It is also soon touched as a
    # whole; memory that is reserved and not yet touched looks like a leak while it is being touched.
    *("--num-gpu-blocks-override", "128"),
]
# oneDNN, which multiplies vLLM's matrices on a CPU, keeps code for every size of batch that it has seen: 1,024 pieces,
# some 400 MB, which fill over 40,000 requests, guarded or not. With room for 16 it is full at once, and slower; memory
# that grows after that is somebody's leak.
_STEADY = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
# A day: no canary prompt is sent meanwhile, which the insiders would take for a client's.
_QUIET = {"FOREGUARD_READY_AGE": "86400"}
_PAUSE_S = 8.0
"""More than the 5 s for which the HTTP server keeps an idle connection."""
_LONGEST_REST_S = 120.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is soaked."""

    model: Path
    artifact: Path
    policy: Path
    eager: bool = False


@contextmanager
def soaked_server(subject: Subject, log: Path, on_wait: Callable[[float], None]) -> Iterator[ServerProcess]:
    """Run the server. Raises `ServingError` if it does not start."""
    port = free_port()
    flags = ["--served-model-name", MODEL, *ONE_ENGINE_PROCESS, *_SIZES, *_INSIDERS]
    flags += ["--enforce-eager"] if subject.eager else []
    command = guarded_command(subject.model, subject.artifact, subject.policy, port, flags)
    # The server imports the insiders from here.
    with running(command, port, log, {**ENVIRONMENT, **_STEADY, **_QUIET, "PYTHONPATH": str(_ROOT)}, on_wait) as server:
        yield server


async def look(server: ServerProcess) -> tuple[Reading, Rest]:
    """Wait until the server rests, then read its books and see what it holds.

    Raises `ServingError` if it does not rest.
    """
    await _rest(server)
    _ask_alone(server)
    await asyncio.sleep(_PAUSE_S)
    census = _get(server, CENSUS)
    metrics = server.metrics()
    ledger = _get(server, LEDGER)
    await asyncio.sleep(1)  # the connections of these looks close
    reading = Reading(metrics, ledger)
    running, waiting = (reading.total(f"vllm:num_requests_{state}") for state in ("running", "waiting"))
    return reading, Rest(usage(server.pid), census, running, waiting)


async def _rest(server: ServerProcess) -> None:
    for _ in range(int(_LONGEST_REST_S)):
        if _get(server, LEDGER)["in_flight"] == 0:
            return
        await asyncio.sleep(1)
    raise ServingError(f"requests are left after {_LONGEST_REST_S:.0f} s", field="rest", remedy=f"see {server.log}")


def _ask_alone(server: ServerProcess) -> None:
    body = {"model": MODEL, "prompt": "A last one.", "max_tokens": 1}
    httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()


def _get(server: ServerProcess, path: str) -> Any:
    return httpx.get(f"{server.url}{path}", timeout=60).raise_for_status().json()
