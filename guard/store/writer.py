"""The thread that writes: it takes what is queued, a batch at a time, and waits where the database does not answer."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import SystemRandom
from typing import Literal, TypeVar

from sqlalchemy import Engine

from guard.journal import Decision
from guard.store.asked_text import AskedText
from guard.store.batch import Batches, KeptText
from guard.store.cipher import Cipher
from guard.store.engine import file_of, make_file, reason
from guard.store.errors import StoreError
from guard.store.migration import upgrade
from guard.store.stored import StoredDecision

logger = logging.getLogger("vllm.foreguard.store")

DropReason = Literal["queue_full", "database", "invalid", "closed"]
"""Why a decision is not in the store. `queue_full`: decisions came faster than they could be written. `database`: the
queue was full because the database was out of reach, or it was so to the end. `invalid`: no database would take the
row. `closed`: it came after the end, or the end was waited for no longer."""
Item = TypeVar("Item")
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
_LINGER_S = 0.25


class Writer(threading.Thread):
    """Empties the queues into a store until it is told to stop, and then once more."""

    def __init__(
        self,
        engine: Engine,
        queue: deque[Decision],
        kept: deque[AskedText],
        *,
        convert: Callable[[Decision], StoredDecision],
        drop: Callable[[DropReason, int], None],
        cipher: Cipher | None = None,
        batch: int = 256,
    ) -> None:
        super().__init__(name="foreguard-store", daemon=True)
        self.written = 0
        """Decisions and texts that the store has taken."""
        self.problem: str | None = None
        """What is wrong with the database, while something is."""
        self._engine, self._queue, self._kept, self._cipher = engine, queue, kept, cipher
        self._convert, self._drop, self._size = convert, drop, batch
        self._stop_asked = threading.Event()
        self._decisions: list[StoredDecision] = []
        self._texts: list[KeptText] = []
        self._batches: Batches | None = None
        self._file: tuple[int, int] | None = None
        self._pause = 0.0

    def stop(self) -> None:
        """Ask the thread to write what is queued, and to end."""
        self._stop_asked.set()

    def run(self) -> None:
        """Write until `stop`."""
        # Nobody wakes the thread for a decision: waking one is most of what handing on costs.
        while not self._stop_asked.wait(self._pause or _LINGER_S):
            self._empty()
        self._empty()
        left = len(self._decisions) + len(self._texts) + len(self._queue) + len(self._kept)
        self._queue.clear()
        self._kept.clear()
        if left:
            self._drop("database", left)

    def _empty(self) -> None:
        """Write batch after batch until nothing is queued, or the database fails.

        A store that was never reached, or that has failed, is reached for though nothing is queued: what is wrong with
        it is told before a decision waits.
        """
        while self._take() or self._batches is None:
            try:
                refused = self._reach().write(self._decisions, self._texts)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread must live to try again
                self._fail(error)
                return
            self.written += len(self._decisions) + len(self._texts) - refused
            self._decisions, self._texts = [], []
            if refused:
                self._drop("invalid", refused)
            self._recover()

    def _take(self) -> bool:
        """Take a batch from the queues, unless one is in hand. Return whether there is one."""
        if self._decisions or self._texts:
            return True
        for each in _taken(self._queue, self._size):
            try:
                self._decisions.append(self._convert(each))
            except (AttributeError, TypeError, ValueError):
                self._drop("invalid", 1)
        for text in _taken(self._kept, self._size):
            try:
                self._texts.append(text.read())
            except Exception:  # noqa: BLE001 - a tokenizer may raise whatever it likes
                self._drop("invalid", 1)
        return bool(self._decisions or self._texts)

    def _reach(self) -> Batches:
        """Return a way to write, to a store that is there and up to date."""
        if self._batches is not None and file_of(self._engine) == self._file:
            return self._batches
        # A SQLite file that was deleted or replaced would be written to for ever, and read by nobody.
        self._batches = None
        self._engine.dispose()
        if self._engine.dialect.name == "sqlite":
            make_file(self._engine.url)
        upgrade(self._engine)
        self._file = file_of(self._engine)
        self._batches = Batches(self._engine, self._cipher)
        return self._batches

    def _fail(self, error: Exception) -> None:
        problem = error.problem if isinstance(error, StoreError) else reason(error, self._engine.url)
        if self.problem is None:
            logger.warning("the decision store cannot be written, and is tried again: %s", problem)
        self.problem = problem
        self._batches = None
        longest = min(max(2 * self._pause, FIRST_PAUSE_S), LAST_PAUSE_S)
        # Servers that lost one database do not all come back to it at once.
        self._pause = SystemRandom().uniform(0.75, 1.0) * longest

    def _recover(self) -> None:
        if self.problem is not None:
            logger.warning("the decision store is written again (process %d)", os.getpid())
        self.problem, self._pause = None, 0.0


def _taken(queue: deque[Item], most: int) -> Iterator[Item]:
    """Take up to `most` out of a queue."""
    with suppress(IndexError):  # it may be emptied meanwhile, by whoever waits for the end no longer
        for _ in range(most):
            yield queue.popleft()
