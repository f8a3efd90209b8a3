"""An engine without a server, driven step by step, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.config import GuardConfig
from serving.offline.process import SMALL
from tests.serving.lab import MODEL

_ALONE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
_FLAGS = ["--model", str(MODEL), "--max-model-len", "1024", "--max-num-seqs", "16", "--seed", "0"]


class Engine:
    """The parent's side."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.about: dict[str, Any] = self._answer()
        """Which `runner` and `scheduler` it has, and how many steps may be under way `at_once`."""

    def play(self, requests: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
        """Run one round: requests, each with the `step` before which it arrives, to their ends.

        Returns what became of each, and how often what happened in the engine.
        """
        print(json.dumps(list(requests)), file=self._process.stdin, flush=True)
        answer = self._answer()
        return answer["outcomes"], answer["events"]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            raise RuntimeError(f"the engine ended with status {self._process.wait()}:\n{tail}")
        return json.loads(line)


@contextmanager
def engine(
    log: Path,
    guard: GuardConfig | None,
    flags: Sequence[str] = (),
    *,
    v2: bool = False,
    asynchronous: bool = False,
) -> Iterator[Engine]:
    """Run an engine on the lab model, guarded or not, on either model runner."""
    settings = {
        "arguments": [*_FLAGS, *flags],
        "guard": guard.model_dump(mode="json") if guard else None,
        "asynchronous": asynchronous,
    }
    environment = {**SMALL, **os.environ, **_ALONE, "VLLM_USE_V2_MODEL_RUNNER": "1" if v2 else "0"}
    command = [sys.executable, "-m", "tests.serving.conformance.driver", json.dumps(settings)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            yield Engine(process, log)
        finally:
            process.kill()
