"""A guarded and an unguarded server of one model, of which only the one that is asked runs: the other is stopped.

An idle server is not quiet (timers, metrics, worker threads that spin), and two cores cannot carry two of them.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp

from benchmarks.load import timed
from benchmarks.subjects import MODEL, Subject
from serving.process import ServerProcess, free_port, guarded_command, running, unguarded_command

_WARM_UP = list(range(100, 116))
# vLLM's CPU engine keeps its worker in a process of its own, and its scheduler spins while it waits for it: on two cores the
# API server then gets its turn by luck, and nothing else can be measured. These two put scheduler and worker into one
# process, as they are on a GPU, with the one thread that they would have had.
ONE_ENGINE_PROCESS = ["--distributed-executor-backend", "uni"]
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


class Servers:
    """The two servers, by name."""

    def __init__(self, guarded: ServerProcess, unguarded: ServerProcess) -> None:
        self._servers = {"guarded": guarded, "unguarded": unguarded}
        self._signal(signal.SIGSTOP)

    @contextmanager
    def awake(self, name: str) -> Iterator[str]:
        """Let the server `name` run, alone, and give its URL."""
        server = self._servers[name]
        os.killpg(server.pid, signal.SIGCONT)
        try:
            yield server.url
        finally:
            os.killpg(server.pid, signal.SIGSTOP)

    def wake_all(self) -> None:
        """Let both run, to be stopped in good order."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for server in self._servers.values():
            os.killpg(server.pid, number)


@contextmanager
def both(subject: Subject, work: Path) -> Iterator[Servers]:
    """Run both servers of `subject`, with logs in `work`; both are stopped until one is asked."""
    flags = ["--served-model-name", MODEL, *ONE_ENGINE_PROCESS, *subject.flags]
    with ExitStack() as stack:
        port = free_port()
        command = guarded_command(subject.model, subject.artifact, subject.policy, port, flags)
        guarded = stack.enter_context(running(command, port, work / f"{subject.name}-guarded.log", ENVIRONMENT))
        port = free_port()
        command = unguarded_command(subject.model, port, flags)
        unguarded = stack.enter_context(running(command, port, work / f"{subject.name}-unguarded.log", ENVIRONMENT))
        servers = Servers(guarded, unguarded)
        stack.callback(servers.wake_all)
        yield servers


async def warm(session: aiohttp.ClientSession, url: str) -> None:
    """Open the connection and run one short request, so that what follows does not pay for waking up."""
    await timed(session, url, _WARM_UP, 2)
