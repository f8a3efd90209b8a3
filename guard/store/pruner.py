"""The thread that keeps a store within its retention, again and again. One process of a server runs it."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy import Engine

from guard.store.engine import reason
from guard.store.retention import Retention, prune

logger = logging.getLogger("vllm.foreguard.store")


class Pruner(threading.Thread):
    """Prunes every `interval` seconds until it is told to stop. A database that is gone is asked again next time."""

    def __init__(
        self,
        engine: Engine,
        retention: Retention,
        interval: float = 300.0,
        *,
        first: float | None = None,
        may_prune: Callable[[], bool] = lambda: True,
    ) -> None:
        """`first` is when it begins, in seconds from its start, if not after an interval. `may_prune` is asked each
        time: of a server's processes it lets one.
        """
        super().__init__(name="foreguard-store-pruner", daemon=True)
        self.problem: str | None = None
        """Why the store could not be pruned the last time, if it could not. It holds no password."""
        self._engine, self._retention, self._interval = engine, retention, interval
        self._first, self._may_prune = interval if first is None else first, may_prune
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Prune until `close`."""
        pause = self._first
        while not self._stop_asked.wait(pause):
            pause = self._interval
            try:
                if self._may_prune():
                    prune(self._engine, self._retention, stop=self._stop_asked)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread must live to try again
                problem = reason(error, self._engine.url)
                if self.problem is None:
                    logger.warning("the decision store cannot be pruned: %s", problem)
                self.problem = problem
            else:
                self.problem = None

    def close(self, timeout: float = 5.0) -> None:
        """Stop, and wait up to `timeout` seconds for a deletion that is under way."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(timeout)
