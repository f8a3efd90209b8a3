"""Recording and scoring through vLLM: the engine of entry point group `foreguard.engines`, in a process of its own.

`python -m serving.offline.recording MODEL [--score-by ARTIFACT] [vLLM's arguments]` reads orders as JSON lines,
`{"prompts": [[token id, ...], ...], "where": [...], "content": [[position, ...], ...], "path": "..."}`, and answers
each with an empty line when the file at `path` is written. It is a process of its own, so that its memory is free again
for whatever follows.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from probes.artifact import Artifact
from probes.errors import ForeguardError, ServingError
from serving.config import GuardConfig
from serving.launch.guardable import require_guardable
from serving.launch.supported import require_supported_vllm
from serving.offline.process import SMALL
from serving.wire import EXTRA

RECORDER = "serving.offline.recorder.RecordingWorker"
SCORER = "serving.offline.scorer.ScoringWorker"
ASKER = "serving.offline.scorer.ScoringScheduler"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
_BATCHED_TOKENS = 2048
"""Streams of all blocks are kept for so many tokens: a gigabyte for an 8B model."""
_LAST_LINES = 12
_SCORE_BY = "--score-by"

Read = Callable[[Sequence[Sequence[int]], Sequence[int | str], Sequence[Sequence[int]], Path], None]
"""Passes prompts through the engine and writes `<place>.<layer>` `[N, D]`, or `scores` `[N, K]` (float32), to a
safetensors file."""


@contextmanager
def vllm_engine(
    model: Path, max_tokens: int, options: Sequence[str], log: Path, artifact: Path | None = None
) -> Iterator[Read]:
    """Run vLLM on `model` for prompts of at most `max_tokens` tokens, with further `options` of `vllm serve`.

    With an `artifact` it is guarded by that one's probes, and gives their scores; without, activations. Its output goes
    to the file `log`. Raises `ServingError` with the end of it where the engine stops.
    """
    require_supported_vllm()
    probes = [_SCORE_BY, str(artifact)] if artifact else []
    longest = ["--max-model-len", str(max_tokens + 1)]
    command = [sys.executable, "-m", "serving.offline.recording", str(model), *probes, *longest, *options]
    environment = {**SMALL, **os.environ, **_ENVIRONMENT}
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603 - vLLM's own arguments, in a list
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            yield lambda *order: _ask(process, log, *order)
        finally:
            process.kill()


def _ask(
    process: "subprocess.Popen[str]",
    log: Path,
    prompts: Sequence[Sequence[int]],
    where: Sequence[int | str],
    content: Sequence[Sequence[int]],
    path: Path,
) -> None:
    order = {"prompts": prompts, "where": list(where), "content": content, "path": str(path)}
    answer = ""
    if process.stdin and process.stdout:
        try:
            print(json.dumps(order), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:  # it is gone: its log says why
            answer = ""
    if not answer:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
        raise ServingError(
            f"vLLM ended with status {process.wait()}; its log ends with:\n{end}",
            field="--engine vllm",
            remedy=f"see {log}, and check --engine-args",
        )


def _serve_orders(orders: IO[str], answers: IO[str], arguments: Sequence[str]) -> None:
    engine = _engine(arguments)
    for line in orders:
        order = json.loads(line)
        engine.collective_rpc("foreguard_begin", args=(len(order["prompts"]), order["where"], order["content"]))
        _pass(engine, order["prompts"])
        engine.collective_rpc("foreguard_write", args=(order["path"],))
        print(file=answers, flush=True)


def _engine(arguments: Sequence[str]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.add_argument(_SCORE_BY, type=Path)
    args: Namespace = parser.parse_args(["--model", *arguments])
    score_by = vars(args).pop("score_by")
    require_guardable(args, parser.parse_args(["--model", arguments[0]]))
    args.async_scheduling = False
    # The key keeps untapped graphs out of vLLM's compile cache.
    if score_by:
        args.worker_cls, args.scheduler_cls = SCORER, ASKER
        args.additional_config = _guarded_by(score_by).to_vllm()
    else:
        args.worker_cls, args.additional_config = RECORDER, {EXTRA: "recorder"}
    args.enable_prefix_caching = False  # a cached prefix would not pass through the model
    args.max_num_batched_tokens = args.max_num_batched_tokens or _BATCHED_TOKENS
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))


def _guarded_by(artifact: Path) -> GuardConfig:
    # Nothing is decided here, so there is no policy to read: no file has this name.
    digest = Artifact.load(artifact).manifest.digest
    return GuardConfig(artifact=artifact, artifact_digest=digest, policy=artifact / "none.yaml")


def _pass(engine: Any, prompts: Sequence[Sequence[int]]) -> None:
    from vllm import SamplingParams

    for row, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=1, temperature=0, extra_args={EXTRA: {"row": row}})
        engine.add_request(str(row), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        engine.step()


if __name__ == "__main__":
    # Everything that prints goes to the log; the answers have the pipe to themselves.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        _serve_orders(sys.stdin, pipe, sys.argv[1:])
    except ForeguardError as error:
        sys.exit(str(error))
