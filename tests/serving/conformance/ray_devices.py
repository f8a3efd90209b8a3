"""vLLM's Ray executor, which its CPU platform has no word for: Ray is told that there is a device to lend.

Executor, actors, message queues and scheduler are vLLM's own. Only the device that an actor holds is a name.
"""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[3]


def name_a_device() -> None:
    """Have vLLM's CPU platform ask Ray for devices. Runs in every process of Ray's as well."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.ray_device_key = "GPU"


def start_ray() -> None:
    """Start a cluster of this machine alone, with one such device."""
    import ray

    name_a_device()
    # Ray's processes begin elsewhere: what is imported from the working directory is not found there.
    here = {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}
    hook = f"{__name__}.{name_a_device.__name__}"
    runtime = {"worker_process_setup_hook": hook, "env_vars": here}
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, runtime_env=runtime)
