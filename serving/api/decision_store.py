"""The decision store in one API process: a sink of the journal, and what runs beside it.

It writes and prunes in threads of its own, and tells in metrics how that goes. Whatever becomes of the database,
requests are answered as ever.
"""

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from guard.store.asked_text import Text
from guard.store.exposition import StoreMetrics
from guard.store.pruner import Pruner
from guard.store.sink import StoreSink
from serving.store_settings import REPLICA, StoreSettings

logger = logging.getLogger("vllm.foreguard.store")

_EVERY_S = 1.0
_FIRST_PRUNED_S = 10.0


class DecisionStore:
    """The store of this process."""

    def __init__(self, settings: StoreSettings, model: str, registry: CollectorRegistry, lock: Path) -> None:
        """`model` is what the server calls its model. Of the server's processes the one that holds `lock` prunes.

        Raises `StoreError` for what the launch would have refused.
        """
        self._metrics = StoreMetrics(registry)
        self._engine = settings.engine()
        self.sink = StoreSink(
            self._engine,
            replica=os.environ.get(REPLICA) or f"{socket.gethostname()}/{os.getpid()}",
            model=model,
            on_drop=self._metrics.observe_drop,
            cipher=settings.cipher(),
        )
        self._keeps_texts = settings.texts
        self._turn = _Turn(lock)
        self._pruner = Pruner(self._engine, settings.retention(), first=_FIRST_PRUNED_S, may_prune=self._turn.is_mine)
        self._task: asyncio.Task[None] | None = None

    @property
    def keep(self) -> Callable[[str, Text], None] | None:
        """What takes a decision's event id and its prompt; None where the operator wants no prompts kept."""
        return self.sink.record_text if self._keeps_texts else None

    def begin(self) -> None:
        """Prune and tell from now on."""
        self._pruner.start()
        self._task = asyncio.create_task(self._tell())

    async def end(self) -> None:
        """Write what is queued, for some seconds at most, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._close)
        self._publish()

    async def _tell(self) -> None:
        while True:
            try:
                self._publish()
            except Exception:
                # Decisions are stored, told or not.
                logger.exception("how the decision store does could not be told")
            await asyncio.sleep(_EVERY_S)

    def _publish(self) -> None:
        self._metrics.publish(self.sink.status(), self._pruner.problem)

    def _close(self) -> None:
        self._pruner.close()
        self.sink.close()
        self._turn.end()
        self._engine.dispose()


class _Turn:
    """Whose turn it is: one process at a time has the lock, until it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def is_mine(self) -> bool:
        """Return whether this process has the lock, and take it if nobody has. Raises `OSError` without a file."""
        if self._file is None:
            file = os.open(self._path, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            self._file = file
        return True

    def end(self) -> None:
        """Let another process have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
