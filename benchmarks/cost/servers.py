"""Servers of one model, of which only those that are asked run: the others are stopped.

An idle server is not quiet (timers, metrics, worker threads that spin), and two cores cannot carry two of them.
"""

import os
import random
import signal
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.cost.load import Client
from benchmarks.cost.subjects import MODEL, Subject
from serving.offline.process import ServerProcess, free_port, guarded_command, running, unguarded_command

_WARM_UP = list(range(100, 116))
# vLLM's CPU engine keeps its worker in a process of its own, and its scheduler spins while it waits for it: on two
# cores the API server then gets its turn by luck, and nothing else can be measured. These two put scheduler and worker
# into one process, as they are on a GPU, with the one thread that they would have had.
ONE_ENGINE_PROCESS = ["--distributed-executor-backend", "uni"]
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
_START_AT_ONCE = 2
_FLAGS = ["--max-model-len", "1024", "--max-num-seqs", "128", "--kv-cache-memory-bytes", str(512 * 2**20)]


class Servers:
    """The servers, by name."""

    def __init__(self, servers: dict[str, ServerProcess]) -> None:
        self._servers = servers
        self._signal(signal.SIGSTOP)

    @contextmanager
    def awake(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Let the servers `names` run, and no other, and give their URLs."""
        servers = [self._servers[name] for name in names]
        for server in servers:
            os.killpg(server.pid, signal.SIGCONT)
        try:
            yield [server.url for server in servers]
        finally:
            for server in servers:
                os.killpg(server.pid, signal.SIGSTOP)

    def wake_all(self) -> None:
        """Let all run, to be stopped in good order."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for server in self._servers.values():
            os.killpg(server.pid, number)


@contextmanager
def servers(subject: Subject, needed: Collection[str], work: Path, round_: int) -> Iterator[Servers]:
    """Run those servers of `subject` that are `needed`, of `guarded`, `unguarded`, `control` (unguarded) and
    `small_judge`.

    They start two at a time in an order that the round's number gives, and so find their memory by other luck.
    """
    names = random.Random(round_).sample(sorted(needed), len(needed))  # noqa: S311 - orders them
    ports = {name: free_port() for name in names}
    with ExitStack() as stack, ThreadPoolExecutor(_START_AT_ONCE) as pool:

        def start(name: str) -> ServerProcess:
            command, log = _command(subject, name, ports[name]), work / f"{subject.name}-{name}.log"
            return stack.enter_context(running(command, ports[name], log, ENVIRONMENT))

        running_ = Servers(dict(zip(names, pool.map(start, names), strict=True)))
        stack.callback(running_.wake_all)
        yield running_


async def warm(client: Client) -> None:
    """Open the connections and run one short request, so that what follows does not pay for waking up."""
    await client.timed(_WARM_UP, 2)


def _command(subject: Subject, name: str, port: int) -> list[str]:
    flags = ["--served-model-name", MODEL, *ONE_ENGINE_PROCESS, *_FLAGS]
    if name == "guarded":
        guard = subject.guards[name]
        return guarded_command(subject.model, guard.artifact, guard.policy, port, flags)
    return unguarded_command(subject.small_judge if name == "small_judge" else subject.model, port, flags)
