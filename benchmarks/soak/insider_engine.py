"""The soak's insider in the engine: an extension of vLLM's worker. Named by vLLM's `--worker-extension-cls`.

It looks only where scheduler and worker share a process (`--distributed-executor-backend uni`), and then sees both.
"""

import inspect
from typing import Any

from benchmarks.soak.census import Census, census
from serving.core.gate import GuardedScheduler


class SoakExtension:
    """Gives the guarded worker one more method."""

    model_runner: Any
    foreguard: Any

    def soak_census(self) -> Census:
        """Return what lives in the engine's process; `sizes` of the gate and its cases, the guard in
        the worker, the runner and its batch.

        Raises `RuntimeError` where the scheduler lives in another process.
        """
        gate = _scheduler()
        return census([gate, gate._cases, self.foreguard, self.model_runner, self.model_runner.input_batch])


def _scheduler() -> GuardedScheduler:
    """Return the scheduler of the engine that is calling: a worker has no reference to it, but its caller has.

    (Nor does the garbage collector tell of it: vLLM freezes what it has made at start-up, and looks no more.)
    """
    frame = inspect.currentframe()
    while frame is not None:
        scheduler = getattr(frame.f_locals.get("self"), "scheduler", None)
        if isinstance(scheduler, GuardedScheduler):
            return scheduler
        frame = frame.f_back
    raise RuntimeError("no guarded scheduler calls this worker: nothing can be said of the gate")
