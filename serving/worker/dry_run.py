"""A dry run: vLLM's own dummy forward pass, as it makes one to measure memory before there is a KV cache.

It touches, of `vllm/v1/worker/gpu_model_runner.py` and `vllm/v1/worker/gpu/model_runner.py`: `_dummy_run`.
"""

from typing import Any

from serving.worker.decoder import DryRun

_TOKENS = 8


def dry_run_of(runner: Any, *, is_v2: bool) -> DryRun:
    """Return the dry run of a model runner whose weights are loaded."""
    if is_v2:
        return lambda: runner._dummy_run(_TOKENS, skip_attn=True, is_profile=True)
    return lambda: runner._dummy_run(_TOKENS, is_profile=True, allow_microbatching=False)
