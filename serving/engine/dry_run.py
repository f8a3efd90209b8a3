"""A dry run: vLLM's own dummy forward pass, as it makes one to measure memory before there is a KV cache.

It touches, of `vllm/v1/worker/gpu_model_runner.py`: `_dummy_run`.
"""

from typing import Any

from serving.engine.decoder import DryRun

_TOKENS = 8


def dry_run_of(runner: Any) -> DryRun:
    """Return the dry run of a V1 model runner whose weights are loaded."""
    return lambda: runner._dummy_run(_TOKENS, is_profile=True, allow_microbatching=False)
