"""The engine's own process: `python -m benchmarks.gpu.stepper SETTINGS`.

SETTINGS is JSON, `{"arguments": [vLLM's], "guard": GuardConfig or null}`. Says first how it runs. Then reads batches as
JSON lines, `{"prompts": [[token id, ...], ...], "max_tokens": N}`, and answers each with the seconds to every request's
`first_token`, and from there `per_token`. All requests of a batch arrive at once.
"""

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import IO, Any


def serve_batches(batches: IO[str], answers: IO[str], settings: dict[str, Any]) -> None:
    """Answer every batch until there are no more."""
    engine = _engine(settings)
    print(json.dumps(_about(engine)), file=answers, flush=True)
    for line in batches:
        batch = json.loads(line)
        print(json.dumps(_timed(engine, batch["prompts"], batch["max_tokens"])), file=answers, flush=True)


def _engine(settings: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    args: Namespace = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(settings["arguments"])
    if settings["guard"]:
        from serving.config import GuardConfig
        from serving.launch.server import SCHEDULER

        args.worker_cls, args.scheduler_cls = "benchmarks.gpu.made_up.MadeUp", SCHEDULER
        args.additional_config = GuardConfig.model_validate(settings["guard"]).to_vllm()
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))


def _about(engine: Any) -> dict[str, Any]:
    config = engine.vllm_config
    [runner] = engine.collective_rpc(_runner)
    return {
        "runner": "V2" if runner.startswith("vllm.v1.worker.gpu.") else "V1",
        "asynchronous": bool(config.scheduler_config.async_scheduling),
        "graphs": str(getattr(config.compilation_config.cudagraph_mode, "name", None)),
        "cache_tokens": config.cache_config.num_gpu_blocks * config.cache_config.block_size,
    }


def _runner(worker: Any) -> str:
    return type(worker.model_runner).__module__


def _timed(engine: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, list[float]]:
    from vllm import SamplingParams

    first: dict[str, float] = {}
    per_token: dict[str, float] = {}
    began = time.perf_counter()
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, detokenize=False)
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            first.setdefault(output.request_id, now)
            if output.finished:
                per_token[output.request_id] = (now - first[output.request_id]) / (max_tokens - 1)
    return {"first_token": [at - began for at in first.values()], "per_token": list(per_token.values())}


if __name__ == "__main__":
    # Everything that prints goes to the log; the answers have the pipe to themselves.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve_batches(sys.stdin, pipe, json.loads(sys.argv[1]))
