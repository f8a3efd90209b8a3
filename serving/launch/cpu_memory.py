"""How large the KV cache is on a CPU, where nobody says: half of the memory that the weights leave free.

vLLM would take 92 % of a NUMA node's memory, and ends where other programs use more than the rest
(`vllm/v1/worker/cpu_worker.py`). It touches `EngineArgs.gpu_memory_utilization` and `kv_cache_memory_bytes`, and
`current_platform.is_cpu`.
"""

import os
from argparse import Namespace
from pathlib import Path

import psutil

from probes.errors import ServingError

SPACE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's own variable for the size, in GiB."""
_GIB = 1 << 30
_SMALLEST = 64 << 20
"""Bytes below which no cache is worth a start."""
_OF_A_WORKER = _GIB // 2
"""Bytes that a worker takes beside weights and cache: its libraries, above all."""
_CGROUP = Path("/sys/fs/cgroup")


def choose_kv_cache(args: Namespace, model: Path) -> str | None:
    """Set the KV cache's size in `args`, and return in words what was chosen; nothing where it was said, or on a GPU.

    `model` is the folder of the weights. Raises `ServingError` where there is no room for a cache.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    said = (
        os.environ.get(SPACE)
        or args.kv_cache_memory_bytes is not None
        or args.gpu_memory_utilization != EngineArgs.gpu_memory_utilization
    )
    if said or not current_platform.is_cpu():
        return None
    replicas = args.data_parallel_size_local or args.data_parallel_size or 1
    workers = replicas * args.tensor_parallel_size
    free, weights = free_memory(), sum(path.stat().st_size for path in model.glob("*.safetensors"))
    size = (free - weights * replicas - _OF_A_WORKER * workers) // 2 // workers
    if size < _SMALLEST:
        raise ServingError(
            f"{free / _GIB:.1f} GiB of memory are free, and the weights take {weights * replicas / _GIB:.1f}",
            field="memory",
            remedy="end other programs, or serve a smaller model",
        )
    args.kv_cache_memory_bytes = size
    each = " a worker" if workers > 1 else ""
    return (
        f"KV cache: {size / _GIB:.1f} GiB{each}, half of the memory that the weights leave free; "
        f"-- --kv-cache-memory-bytes says otherwise"
    )


def free_memory() -> int:
    """Return the bytes that this process and its children may still take: the machine's, or their control group's."""
    free = int(psutil.virtual_memory().available)
    limit, used = (_CGROUP / "memory.max", _CGROUP / "memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdecimal():
        free = min(free, max(int(most) - int(used.read_text()), 0))
    return free
