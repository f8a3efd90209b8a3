"""Room on the interpreter's stack under the loops in which vLLM's workers run.

CPython takes its stack from the system in pieces of 16 KiB, and gives a piece back as soon as the call returns that began
it (`push_chunk` and `_PyThreadState_PopFrame` in its Python/pystate.c). On a CPU vLLM calls Python once a layer, for
attention: where such a call happens to begin a piece, every layer of every step pays 25 µs, and the frames that the guard
adds make it so where it was not. From a frame so large that all calls under it fit into its piece, none begins one.

It touches `run_busy_loop` of `vllm/v1/engine/core.py` `EngineCoreProc` and `DPEngineCoreProc`, and `worker_busy_loop` of
`vllm/v1/executor/multiproc_executor.py` `WorkerProc`: each is wrapped, and runs for as long as its process.
"""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.engine.core import DPEngineCoreProc, EngineCoreProc
from vllm.v1.executor.multiproc_executor import WorkerProc

_ROOM = 2**14
"""Values of 8 bytes: the piece that holds them is twice as large."""
_LOOPS = (
    (EngineCoreProc, "run_busy_loop"),
    (DPEngineCoreProc, "run_busy_loop"),
    (WorkerProc, "worker_busy_loop"),
)


def with_room(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, made from a frame under which there is room for all calls that it makes."""

    def roomy(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    roomy.__code__ = roomy.__code__.replace(co_stacksize=_ROOM)
    return functools.update_wrapper(roomy, call)


@functools.cache
def make_room() -> None:
    """Let the loops of this process, which begin when its engine or its worker is ready, run with room."""
    for owner, name in _LOOPS:
        setattr(owner, name, with_room(getattr(owner, name)))
