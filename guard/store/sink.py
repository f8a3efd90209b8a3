"""The sink that keeps decisions: it queues them, and a thread writes them. No database ever holds a verdict up."""

import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Engine

from guard.journal import Decision
from guard.store.asked_text import LONGEST_TEXT, AskedText, Text
from guard.store.cipher import Cipher
from guard.store.stored import stored
from guard.store.writer import DropReason, Writer


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """How a process's sink does."""

    queued: int
    written: int
    dropped: Mapping[DropReason, int]
    problem: str | None
    """What is wrong with the database, while something is. It holds no password."""


class StoreSink:
    """A sink of `guard.journal.Journal`.

    Each process makes its own. One that a process inherits by a fork begins anew there: what was queued is the
    parent's to write.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        replica: str | None = None,
        model: str | None = None,
        on_drop: Callable[[DropReason, int], None] = lambda _reason, _count: None,
        capacity: int = 20_000,
        text_capacity: int = 500,
        cipher: Cipher | None = None,
    ) -> None:
        """`replica` and `model` are what decisions are recorded under, as `stored` has them.

        `on_drop` is told, in any thread, how many decisions were dropped, and why. `capacity` is how many wait at
        most while the database does not answer, about 2 KB each. With a `cipher`, texts may be kept, too. The
        database need not be there: the tables are made when it first is.
        """
        self._engine, self._cipher, self._on_drop = engine, cipher, on_drop
        self._convert = partial(stored, replica=replica, model=model)
        self._capacity, self._text_capacity = capacity, text_capacity
        self._begin()

    def record(self, decision: Decision) -> None:
        """Queue a decision. It takes microseconds, and raises nothing."""
        if self._has_room(self._queue, self._capacity):
            self._queue.append(decision)

    def record_text(self, event_id: str, text: Text) -> None:
        """Queue a decision's prompt, to be kept encrypted. Without a cipher the operator wants none kept.

        A `text` that is a function is called by the thread that writes. Of what a text holds, the last `LONGEST_TEXT`
        characters are kept.
        """
        if self._cipher is not None and self._has_room(self._kept, self._text_capacity):
            end = text[-LONGEST_TEXT:] if isinstance(text, str) else text
            self._kept.append(AskedText(event_id, end, datetime.now(UTC)))

    def give_up(self) -> None:
        """Do nothing: there is no decision to keep."""

    def status(self) -> SinkStatus:
        """Return how the sink does."""
        with self._lock:
            dropped = dict(self._dropped)
        return SinkStatus(len(self._queue) + len(self._kept), self._writer.written, dropped, self._writer.problem)

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued, and stop. After `timeout` seconds the rest is dropped, and counted."""
        self._closed = True
        if self._pid != os.getpid():
            return
        self._writer.stop()
        self._writer.join(timeout)
        left = len(self._queue) + len(self._kept)
        self._queue.clear()
        self._kept.clear()
        if left:
            self._drop("closed", left)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._queue: deque[Decision] = deque()
        self._kept: deque[AskedText] = deque()
        self._dropped: Counter[DropReason] = Counter()
        self._lock = threading.Lock()
        self._writer = Writer(
            self._engine, self._queue, self._kept, convert=self._convert, drop=self._drop, cipher=self._cipher
        )
        self._writer.start()

    def _has_room(self, queue: deque[Decision] | deque[AskedText], capacity: int) -> bool:
        """Return whether something may be queued. If not, it is dropped, and counted."""
        if self._pid != os.getpid():
            # The parent's connections are not this process's to close.
            self._engine.dispose(close=False)
            self._begin()
        if self._closed:
            self._drop("closed", 1)
        elif len(queue) >= capacity:
            self._drop("queue_full" if self._writer.problem is None else "database", 1)
        else:
            return True
        return False

    def _drop(self, reason: DropReason, count: int) -> None:
        with self._lock:
            self._dropped[reason] += count
        with suppress(Exception):
            self._on_drop(reason, count)
