"""vLLM's V2 model runner on a CPU: its Triton kernels run in Triton's own interpreter.

vLLM's CPU build runs the V2 runner where Triton has a backend for CPUs, which the released wheels lack. The interpreter
executes the same kernels without any backend; all that is needed is that vLLM believes in one. Slow, and real: the
runner, its kernels and its data structures are those of a GPU.
"""

import os
import sys
from pathlib import Path
from typing import Any

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
    _store_under_masks_of_bits()


def _store_under_masks_of_bits() -> None:
    """Let a mask be of any type that says yes or no: the interpreter loses the type of one that was reshaped."""
    from triton.runtime.interpreter import InterpreterBuilder

    store = InterpreterBuilder.create_masked_store

    def store_masked(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_store = store_masked
