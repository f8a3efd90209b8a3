"""A server in a process of its own: started, waited for, and stopped with all its children.

For the demo, the benchmarks and the tests.
"""

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from probes.errors import ServingError
from serving.settings import METRICS_KEY

# A small server: without a limit the CPU engine reserves nearly all memory for its KV cache.
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
_METRICS_KEY = secrets.token_hex(16)
"""The key for all metrics of the servers that this process starts."""
START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0
_LASTING = range(20_000, 32_000)
"""Ports below those that Linux and macOS give to outgoing connections and to whoever asks for any."""
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server."""

    port: int
    log: Path
    pid: int

    @property
    def url(self) -> str:
        """Where it answers, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def metrics(self) -> dict[str, float]:
        """Return every sample on /metrics, scores and thresholds too, by its name with labels."""
        text = httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {_METRICS_KEY}"}, timeout=30).text
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


def free_port() -> int:
    """Return a port that nothing listens on, and that the system gives to no connection before a server starts on
    it.
    """
    for port in random.sample(_LASTING, len(_LASTING)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServingError(f"no port of {_LASTING} is free", field="port", remedy="end what listens on them")


def guarded_command(model: Path, artifact: Path, policy: Path, port: int, vllm: Sequence[str] = ()) -> list[str]:
    """Return the command of a guarded server."""
    foreguard = str(Path(sys.executable).with_name("foreguard"))
    files = ["--artifact", str(artifact), "--policy", str(policy)]
    return [foreguard, "serve", str(model), *files, "--port", str(port), "--", *vllm]


def unguarded_command(model: Path, port: int, vllm: Sequence[str] = ()) -> list[str]:
    """Return the command of vLLM's own server, to compare with.

    Its own `vllm serve` does not start under the distribution name vllm-cpu (it looks up the metadata of vllm).
    """
    start = (
        "import sys; from vllm.entrypoints.cli.serve import ServeSubcommand as S;"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; p = P();"
        "S().subparser_init(p.add_subparsers(dest='command')); S.cmd(p.parse_args(sys.argv[1:]))"
    )
    return [sys.executable, "-c", start, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *vllm]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    on_wait: Callable[[float], None] = lambda _: None,
) -> Iterator[ServerProcess]:
    """Run `command` until its port answers; stop it at the end. Raises `ServingError` with the end of its log.

    `on_wait` is called with the seconds waited so far, for progress.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the commands are built above, not taken from anyone
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**SMALL, **os.environ, METRICS_KEY: _METRICS_KEY, **(environment or {})},
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, port, log, on_wait)
        yield ServerProcess(port, log, process.pid)
    finally:
        _stop(process)


def _wait_until_healthy(
    process: "subprocess.Popen[bytes]", port: int, log: Path, on_wait: Callable[[float], None]
) -> None:
    began = time.monotonic()
    while (waited := time.monotonic() - began) < START_TIMEOUT_S:
        if process.poll() is not None:
            raise ServingError(
                f"the server ended with status {process.returncode}; its log ends with:\n{_tail(log)}",
                field="server",
                remedy=f"see {log}",
            )
        if _is_healthy(port):
            return
        on_wait(waited)
        time.sleep(_POLL_S)
    raise ServingError(f"no answer within {START_TIMEOUT_S:.0f} s:\n{_tail(log)}", field="server", remedy=f"see {log}")


def _is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask the server to stop, as an operator would, then make sure that nothing of it is left."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_STOP_TIMEOUT_S)


def _tail(log: Path, count: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
