"""A guarded and an unguarded engine on one device, each in a process of its own; only the one that is asked
computes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.shape import Shape
from serving.config import GuardConfig
from serving.offline.process import SMALL

_ALONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
_SHARE = "0.45"
"""Of the device's memory, for each."""


class Engine:
    """The parent's side."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.about: dict[str, Any] = self._answer()

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, list[float]]:
        """Answer `prompts` as one batch. Returns seconds by request: to the `first_token`, and `per_token` after it."""
        print(json.dumps({"prompts": prompts, "max_tokens": max_tokens}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"the engine ended with status {self._process.wait()}; its log ends with:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def twins(shape: Shape, work: Path, max_model_len: int, flags: Sequence[str] = ()) -> Iterator[dict[str, Engine]]:
    """Run both engines of `shape`, by `guarded` and `unguarded`, with further `flags` of vLLM's."""
    model = shape.write(work / "model")
    arguments = ["--model", str(model), "--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16"]
    arguments += ["--max-model-len", str(max_model_len), "--max-num-seqs", "128", "--seed", "0"]
    arguments += ["--max-num-batched-tokens", "8192", "--gpu-memory-utilization", _SHARE, *flags]
    with ExitStack() as running:
        guards = {"guarded": shape.guard(work), "unguarded": None}
        yield {
            name: running.enter_context(_engine(arguments, guard, work / f"{name}.log"))
            for name, guard in guards.items()
        }


@contextmanager
def _engine(arguments: Sequence[str], guard: GuardConfig | None, log: Path) -> Iterator[Engine]:
    settings = {"arguments": list(arguments), "guard": guard.model_dump(mode="json") if guard else None}
    command = [sys.executable, "-m", "benchmarks.gpu.stepper", json.dumps(settings)]
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603 - built above
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**SMALL, **os.environ, **_ALONE},
        ) as process,
    ):
        try:
            yield Engine(process, log)
        finally:
            process.kill()
