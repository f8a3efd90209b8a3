"""The engine's own process: `python -m tests.serving.conformance.driver SETTINGS`.

SETTINGS is JSON: `{"arguments": [vLLM's], "guard": GuardConfig or null, "asynchronous": bool}`. Reads rounds as JSON
lines, a list of requests each, and answers each with what became of them. Steps are taken one by one, so that requests
arrive, leave and are interrupted in exactly the step that the round says.
"""

import json
import os
import sys
from collections import Counter
from typing import IO, Any

OF_ANY_CONNECTOR = "tests.serving.conformance.any_connector.Worker"


def serve_rounds(rounds: IO[str], answers: IO[str], settings: dict[str, Any]) -> None:
    engine = make_engine(settings)
    counts = count_events(engine.engine_core.engine_core.scheduler)
    print(json.dumps(about(engine)), file=answers, flush=True)
    for line in rounds:
        counts.clear()
        outcomes = play(engine, json.loads(line))
        print(json.dumps({"outcomes": outcomes, "events": counts}), file=answers, flush=True)


def make_engine(settings: dict[str, Any]) -> Any:
    import torch

    # On a GPU nothing is pretended: the flags say what is wanted, and vLLM has it.
    pretends = not torch.cuda.is_available()
    if pretends and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        from tests.serving.conformance.triton_interpreter import pretend_triton_has_a_cpu

        pretend_triton_has_a_cpu()
    if pretends and settings["asynchronous"]:
        schedule_asynchronously()
    if "ray" in settings["arguments"]:
        from tests.serving.conformance.ray_devices import start_ray

        start_ray()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(settings["arguments"])
    if settings["guard"]:
        from serving.config import GuardConfig
        from serving.launch.server import SCHEDULER, WORKER

        # The connectors of these tests are none that a server may have.
        own = args.kv_transfer_config and args.kv_transfer_config.kv_connector_module_path
        args.worker_cls, args.scheduler_cls = OF_ANY_CONNECTOR if own else WORKER, SCHEDULER
        args.additional_config = GuardConfig.model_validate(settings["guard"]).to_vllm()
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))


def schedule_asynchronously() -> None:
    """Undo the one thing that keeps vLLM's CPU platform from it: its own word that it is not needed there."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_stay_asynchronous(cls: type, vllm_config: Any) -> None:
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_stay_asynchronous)


def about(engine: Any) -> dict[str, Any]:
    """Say which runner, scheduler, executor and CUDA graphs these really are, and how many steps may be under way at
    once.
    """
    core = engine.engine_core.engine_core
    [runner] = engine.collective_rpc(lambda worker: type(worker.model_runner).__module__)
    graphs = getattr(engine.vllm_config.compilation_config.cudagraph_mode, "name", None)
    executor, scheduler = type(core.model_executor).__name__, type(core.scheduler).__name__
    made = {"runner": runner, "scheduler": scheduler, "executor": executor, "graphs": graphs}
    return {**made, "at_once": core.batch_queue_size}


def count_events(scheduler: Any) -> Counter[str]:
    """Count preemptions, drafted tokens and tokens that a KV connector loads: proof that a scenario is what it says."""
    counts: Counter[str] = Counter()
    preempt, stats = scheduler._preempt_request, scheduler.make_spec_decoding_stats

    def preempt_and_count(*args: Any, **options: Any) -> Any:
        counts["preempted"] += 1
        return preempt(*args, **options)

    def stats_and_count(*args: Any, **options: Any) -> Any:
        counts["drafted"] += options["num_draft_tokens"]
        counts["accepted"] += options["num_accepted_tokens"]
        return stats(*args, **options)

    if scheduler.connector is not None:
        note = scheduler.connector.update_state_after_alloc

        def note_and_count(request: Any, blocks: Any, num_external_tokens: int) -> None:
            counts["loaded"] += num_external_tokens
            note(request, blocks, num_external_tokens)

        scheduler.connector.update_state_after_alloc = note_and_count
    scheduler._preempt_request, scheduler.make_spec_decoding_stats = preempt_and_count, stats_and_count
    return counts


def play(engine: Any, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Run one round to its end."""
    outcomes: dict[str, Any] = {}
    due = sorted(requests, key=lambda request: request.get("step", 0))
    step = 0
    while due or engine.has_unfinished_requests():
        while due and due[0].get("step", 0) <= step:
            act(engine, due.pop(0), outcomes)
        for output in engine.step():
            note(output, outcomes.setdefault(output.request_id, {}))
        step += 1
    return outcomes


def act(engine: Any, request: dict[str, Any], outcomes: dict[str, Any]) -> None:
    """Add a request, or do what else the round asks for at this step."""
    if "abort" in request:
        engine.abort_request([request["abort"]])
    elif "reset" in request:
        engine.reset_prefix_cache(reset_running_requests=request["reset"] == "running")
    else:
        add(engine, request)


def add(engine: Any, request: dict[str, Any]) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams

    params = {"temperature": 0, "max_tokens": 16, **request.get("params", {})}
    if grammar := params.pop("structured", None):
        params["structured_outputs"] = StructuredOutputsParams(**grammar)
    prompt = {"prompt_token_ids": request["prompt"]}
    if "salt" in request:
        prompt["cache_salt"] = request["salt"]
    lora = LoRARequest(*request["lora"]) if "lora" in request else None
    engine.add_request(request["id"], prompt, SamplingParams(**params), lora_request=lora)


def note(output: Any, outcome: dict[str, Any]) -> None:
    """Take in one output of a request: cumulative, but for the verdict, which is kept from whichever brought it."""
    carried = (output.kv_transfer_params or {}).get("foreguard", {})
    for kind in carried.keys() & {"verdict", "answer"}:
        outcome.setdefault(f"{kind}s", []).append(carried[kind])
    outcome["cached"] = output.num_cached_tokens
    outcome["finished"] = output.finished
    outcome["prompt_logprobs"] = output.prompt_logprobs and len(output.prompt_logprobs)
    completions = outcome.setdefault("completions", {})
    for completion in output.outputs:
        completions[completion.index] = {
            "tokens": list(completion.token_ids),
            "text": completion.text,
            "finish": completion.finish_reason,
            "stop": completion.stop_reason,
            "logprobs": completion.logprobs and len(completion.logprobs),
        }


if __name__ == "__main__":
    # Everything that prints goes to the log; the answers have the pipe to themselves.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve_rounds(sys.stdin, pipe, json.loads(sys.argv[1]))
