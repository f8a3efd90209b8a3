"""Deletes what is too old, or too much: a little at a time, so that whoever writes hardly waits.

Several processes may do so at once: what goes is what is before one key, and not so many rows. A SQLite file does not
shrink by it, but new rows take the room that became free.
"""

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Delete, Engine, Select, delete, func, select

from guard.store.engine import for_writing
from guard.store.errors import StoreError
from guard.store.row_key import TIES, first_key, microseconds
from guard.store.schema import decisions, texts

_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Retention:
    """How long decisions are kept, and how many. Labels stay: they are few, and the log of who said what."""

    age: timedelta | None = timedelta(days=90)
    """None: however old they are."""
    decisions: int | None = 10_000_000
    """None: however many they are."""
    text_age: timedelta | None = timedelta(days=7)
    """How long prompts are kept, where any are. They never outlive their decisions."""

    def __post_init__(self) -> None:
        ages = [age for age in (self.age, self.text_age) if age is not None]
        if any(age <= timedelta(0) for age in ages) or (self.decisions is not None and self.decisions < 1):
            raise StoreError(
                "nothing would be kept", field="retention", remedy="give an age above 0, and one decision or more"
            )


@dataclass(frozen=True, slots=True)
class Deleted:
    """What one round of `prune` deleted."""

    decisions: int
    texts: int


def prune(engine: Engine, retention: Retention, *, batch: int = 1000, stop: threading.Event | None = None) -> Deleted:
    """Delete what is not to be kept, `batch` rows in a transaction, and return how much that was.

    It ends early once `stop` is set. Raises `sqlalchemy.exc.DBAPIError` where the store is gone; what was deleted
    before then is.
    """
    asked = stop or threading.Event()
    now = datetime.now(UTC)
    first = _first_kept(engine, retention, now)
    old = select(decisions.c.key).where(decisions.c.key < first).order_by(decisions.c.key).limit(batch)
    number = _delete_all(engine, delete(decisions).where(decisions.c.key.in_(old)), batch, asked)
    oldest = first // TIES
    if retention.text_age is not None:
        oldest = max(oldest, microseconds(now - retention.text_age))
    stale = select(texts.c.event_id).where(texts.c.time < oldest).order_by(texts.c.time).limit(batch)
    return Deleted(number, _delete_all(engine, delete(texts).where(texts.c.event_id.in_(stale)), batch, asked))


def _first_kept(engine: Engine, retention: Retention, now: datetime) -> int:
    """Return the key before which nothing is kept."""
    first = 0 if retention.age is None else first_key(now - retention.age)
    if retention.decisions is not None:
        newest: Select[Any] = select(decisions.c.key).order_by(decisions.c.key.desc()).limit(retention.decisions)
        rows = newest.subquery()
        with engine.connect() as connection:
            number, smallest = connection.execute(select(func.count(), func.min(rows.c.key)).select_from(rows)).one()
        if number == retention.decisions:
            first = max(first, smallest)
    return first


def _delete_all(engine: Engine, statement: Delete, batch: int, stop: threading.Event) -> int:
    """Carry out a deletion of up to `batch` rows until it finds fewer, and return how many went."""
    number = 0
    while not stop.is_set():
        with for_writing(engine).begin() as connection:
            gone = connection.execute(statement).rowcount
        number += gone
        if gone < batch:
            break
        stop.wait(_PAUSE_S)  # SQLite's lock goes to whoever asks first, and not to whoever waits longest
    return number
