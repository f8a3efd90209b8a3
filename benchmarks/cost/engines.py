"""Engines without servers, driven batch by batch: they share a process and their weights, and make the same steps.

Nothing arrives while a batch runs, or only as something of it ends, so that each step can be compared with its twin. A
server's steps cannot: what it batches depends on when requests happen to arrive.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cost.batches import Request
from benchmarks.cost.subjects import Subject
from serving.offline.process import SMALL

Steps = dict[str, Any]
"""Of one batch: the seconds of its `prefill` and of its `decode` steps, and the `actions` of the guard, counted."""

_ENVIRONMENT = {
    **SMALL,
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # What vLLM gives a server's engine on two cores: the other one is the API server's.
    "OMP_NUM_THREADS": "1",
}
_UNGUARDED, _GUARDED = "benchmarks.cost.shared_weights.Unguarded", "benchmarks.cost.shared_weights.Guarded"
_HOOKED = {"hooks": "benchmarks.cost.hooks.HookedWorker", "host_copy": "benchmarks.cost.hooks.CopyingWorker"}


class Engines:
    """The parent's side."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._answer()

    def run(self, batches: Mapping[str, Sequence[Request]], at_once: int = 0) -> dict[str, Steps]:
        """Let each engine named answer its requests as one batch, all in lockstep, `at_once` as `Work` has it."""
        asked = {
            name: [(list(each.prompt), each.max_tokens, dict(each.asks)) for each in batch]
            for name, batch in batches.items()
        }
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        print(json.dumps([asked, at_once]), file=self._process.stdin, flush=True)
        steps: dict[str, Steps] = self._answer()
        return steps

    def _answer(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engines ended with status {self._process.wait()}; see their log")
        return json.loads(line)


@contextmanager
def engines(subject: Subject, names: Iterable[str], log: Path) -> Iterator[Engines]:
    """Run the engines of `subject` of these `names`; they are idle, and quiet, whenever they are not asked."""
    specs = json.dumps({name: spec(subject, name) for name in names})
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603 - built here
            [sys.executable, "-m", "benchmarks.cost.stepper", specs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        ) as process,
    ):
        try:
            yield Engines(process)
        finally:
            process.kill()


def spec(subject: Subject, name: str) -> dict[str, Any]:
    """Return how the engine `name` is started, as `benchmarks.cost.stepper` takes it."""
    model = str(subject.small_judge if name == "small_judge" else subject.model)
    if name in _HOOKED:
        return {"model": model, "worker": _HOOKED[name], "eager": True, "files": _files(subject, "guarded")}
    if name in subject.guards:
        return {"model": model, "worker": _GUARDED, "files": _files(subject, name)}
    return {"model": model, "worker": _UNGUARDED, "eager": name == "eager"}


def _files(subject: Subject, name: str) -> list[str]:
    guard = subject.guards[name]
    return [str(guard.artifact), str(guard.policy)]
