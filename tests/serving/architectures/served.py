"""One served model, in a process of its own so that its memory is free again: `python -m
tests.serving.architectures.served`.

Reads an order as JSON from its input, passes the prompts through vLLM with a tapped model, and writes what the taps
read to `path` and what was found to `about`.
"""

import json
import sys
from pathlib import Path

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine

from serving.wire import EXTRA


def engine(order):
    """Start vLLM as `serving.offline.recording` does, but for the worker, and the tokenizer, which random models
    lack.
    """
    args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(
        ["--model", order["model"], *order["arguments"]]
    )
    args.async_scheduling = False
    args.worker_cls = order["worker"]
    args.additional_config = order["config"]
    args.enable_prefix_caching = False
    args.skip_tokenizer_init = True
    return LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))


def main():
    order = json.load(sys.stdin)
    running = engine(order)
    prompts = order["prompts"]
    running.collective_rpc("foreguard_begin", args=(len(prompts), list(range(max(map(len, prompts)))), []))
    for row, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, extra_args={EXTRA: {"row": row}})
        running.add_request(str(row), {"prompt_token_ids": prompt}, params)
    while running.has_unfinished_requests():
        running.step()
    running.collective_rpc("foreguard_write", args=(order["path"],))
    [about] = running.collective_rpc("foreguard_about")
    Path(order["about"]).write_text(json.dumps(about))


if __name__ == "__main__":
    main()
