"""Readiness: whether the guard has scored a prompt lately. Where no client asks, a canary prompt does.

vLLM's `/health` fails only once the engine has died: it says nothing of one that hangs. `GET /guard/ready` does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from guard.metrics import GuardMetrics
from probes.errors import ForeguardError

logger = logging.getLogger("vllm.foreguard.readiness")

PATH = "/guard/ready"
_CANARIES_AN_AGE = 3
"""Canaries in one such time: one that is late changes nothing."""


class Readiness:
    """Knows how long ago a prompt was scored, and sends a canary once an interval if no client's was."""

    def __init__(self, canary: Callable[[], Awaitable[object]], metrics: GuardMetrics, max_age: float) -> None:
        """`canary` asks every engine, and raises where one does not answer as it should."""
        self._canary = canary
        self._metrics = metrics
        self._max_age = max_age
        self._interval = max_age / _CANARIES_AN_AGE
        self._scored_at = time.monotonic()
        self._problem = "no prompt was sent"
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Watch from now on: the self-test has just passed."""
        self.note_scored()
        self._publish()
        self._task = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def note_scored(self) -> None:
        """Take note that a prompt was scored just now."""
        self._scored_at = time.monotonic()

    def report(self) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of `GET /guard/ready`."""
        age = self._age()
        body = {"ready": age <= self._max_age, "scored_seconds_ago": round(age, 3), "max_age_seconds": self._max_age}
        if body["ready"]:
            return 200, body
        return 503, body | {"reason": f"no prompt was scored for {age:.0f} s: {self._problem}"}

    def _age(self) -> float:
        return time.monotonic() - self._scored_at

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            if self._age() >= self._interval:
                await self._ask()
            self._publish()
            # At once after a canary that took the whole interval.
            await asyncio.sleep(max(0.0, began + self._interval - time.monotonic()))

    async def _ask(self) -> None:
        try:
            # Not `wait_for`: in Python 3.11 it can lose the cancellation by which `end` stops the watch.
            async with asyncio.timeout(self._interval):
                await self._canary()
            self.note_scored()
        except TimeoutError:
            self._problem = f"the engine did not answer a canary prompt within {self._interval:g} s"
        except ForeguardError as error:
            self._problem = str(error)
        except Exception as error:
            # Whatever failed, the guard has not seen its canary; the next one is sent all the same.
            logger.exception("a canary prompt failed")
            self._problem = str(error) or type(error).__name__

    def _publish(self) -> None:
        age = self._age()
        if age > self._max_age:
            logger.error("not ready: no prompt was scored for %.0f s: %s", age, self._problem)
        self._metrics.observe_readiness(age <= self._max_age, time.time() - age)
