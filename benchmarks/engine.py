"""Engines without a server, driven batch by batch: a guarded and an unguarded one make the same steps.

Nothing arrives while a batch runs, so that each step can be compared with its twin. A server's steps cannot: what it
batches depends on when requests happen to arrive.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.subjects import Subject
from serving.process import SMALL

_ENVIRONMENT = {
    **SMALL,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # What vLLM gives a server's engine on two cores: the other one is the API server's.
    "OMP_NUM_THREADS": "1",
}


class Engine:
    """The parent's side."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, list[float]]:
        """Answer `prompts` as one batch. Returns the seconds of its steps: of `prefill` steps, and of `decode` steps."""
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        print(json.dumps({"prompts": prompts, "max_tokens": max_tokens}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended with status {self._process.wait()}; see its log")
        steps: dict[str, list[float]] = json.loads(line)
        return steps


@contextmanager
def engine(subject: Subject, *, guarded: bool, log: Path) -> Iterator[Engine]:
    """Run an engine of `subject`; it is idle, and quiet, whenever it is not asked."""
    files = [str(subject.artifact), str(subject.policy)] if guarded else []
    command = [sys.executable, "-m", "benchmarks.stepper", str(subject.model), str(subject.at_once), *files]
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603 - built above
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        ) as process,
    ):
        try:
            yield Engine(process)
        finally:
            process.kill()
