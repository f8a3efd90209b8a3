"""The thread that keeps a store within its retention, again and again. One process of a server runs it."""

import logging
import threading

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from guard.store.engine import reason
from guard.store.retention import Retention, prune

logger = logging.getLogger("vllm.foreguard.store")


class Pruner(threading.Thread):
    """Prunes every `interval` seconds until it is told to stop. A database that is gone is asked again next time."""

    def __init__(self, engine: Engine, retention: Retention, interval: float = 300.0) -> None:
        super().__init__(name="foreguard-store-pruner", daemon=True)
        self._engine, self._retention, self._interval = engine, retention, interval
        self._stop_asked = threading.Event()
        self._is_failing = False

    def run(self) -> None:
        """Prune until `close`."""
        while not self._stop_asked.wait(self._interval):
            try:
                prune(self._engine, self._retention, stop=self._stop_asked)
            except SQLAlchemyError as error:
                if not self._is_failing:
                    logger.warning("the decision store cannot be pruned: %s", reason(error, self._engine.url))
                self._is_failing = True
            else:
                self._is_failing = False

    def close(self, timeout: float = 5.0) -> None:
        """Stop, and wait up to `timeout` seconds for a deletion that is under way."""
        self._stop_asked.set()
        if self.is_alive():
            self.join(timeout)
