"""The engine's own process: `python -m benchmarks.stepper MODEL AT_ONCE [ARTIFACT POLICY]`.

Reads batches as JSON lines, `{"prompts": [[token id, ...], ...], "max_tokens": N}`, and answers each with the seconds of its
steps, apart for `prefill` steps (some request of the batch has no token yet) and `decode` steps.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any


def _serve_steps(batches: IO[str], answers: IO[str], model: str, at_once: int, files: Sequence[str]) -> None:
    llm = _engine(model, at_once, files)
    for line in batches:
        batch = json.loads(line)
        print(json.dumps(_timed_steps(llm, batch["prompts"], batch["max_tokens"])), file=answers, flush=True)


def _engine(model: str, at_once: int, files: Sequence[str]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    options: dict[str, Any] = {"model": model, "max_model_len": 1024, "max_num_seqs": at_once, "seed": 0}
    if files:
        from probes.artifact import Artifact
        from serving.config import GuardConfig
        from serving.server import SCHEDULER, WORKER

        artifact, policy = (Path(file).resolve() for file in files)
        digest = Artifact.load(artifact).manifest.digest
        config = GuardConfig(artifact=artifact, artifact_digest=digest, policy=policy)
        options |= {"worker_cls": WORKER, "scheduler_cls": SCHEDULER, "additional_config": config.to_vllm()}
    return LLMEngine.from_engine_args(EngineArgs(**options))


def _timed_steps(llm: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, list[float]]:
    from vllm import SamplingParams

    waiting = set()
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        waiting.add(str(number))
        llm.add_request(str(number), {"prompt_token_ids": prompt}, params)
    steps: dict[str, list[float]] = {"prefill": [], "decode": []}
    while llm.has_unfinished_requests():
        kind = "prefill" if waiting else "decode"
        began = time.perf_counter()
        outputs = llm.step()
        steps[kind].append(time.perf_counter() - began)
        waiting -= {output.request_id for output in outputs}
    return steps


if __name__ == "__main__":
    # Everything that prints goes to the log; the answers have the pipe to themselves.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve_steps(sys.stdin, pipe, sys.argv[1], int(sys.argv[2]), sys.argv[3:])
