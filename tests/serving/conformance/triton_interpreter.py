"""vLLM's V2 model runner on a CPU: its Triton kernels run in Triton's own interpreter.

vLLM's CPU build runs the V2 runner where Triton has a backend for CPUs, which the released wheels lack. The interpreter
executes the same kernels without any backend; all that is needed is that vLLM believes in one. Slow, and real: the runner,
its kernels and its data structures are those of a GPU.
"""

import os
import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "interpreter"
"""Where `make` installs Triton: aside, for nothing else here is to find it."""


class _AlwaysActive:
    """A driver that is there."""

    @staticmethod
    def is_active() -> bool:
        return True


def pretend_triton_has_a_cpu() -> None:
    """Give Triton a CPU backend in name; its kernels are interpreted. Before vLLM is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.append(str(FOLDER))
    from triton import backends

    some = next(iter(backends.backends.values()))
    backends.backends["cpu"] = backends.Backend(compiler=some.compiler, driver=_AlwaysActive)
