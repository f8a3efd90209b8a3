"""How many decisions there were, minute by minute, and of which kind."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, func, select

from guard.store.dictionary import Dictionary
from guard.store.errors import StoreError
from guard.store.filters import Filters
from guard.store.reader import ALL
from guard.store.row_key import TIES, time_of
from guard.store.schema import WORDS, decisions, words

MINUTE = timedelta(minutes=1)
_PARTS = 64
Sums = tuple[int, float, float]


@dataclass(frozen=True, slots=True)
class Count:
    """Decisions of one kind in one stretch of time."""

    start: datetime
    """When the stretch began, in UTC."""
    words: tuple[str | None, ...]
    """What the decisions have in common, in the order in which it was asked for."""
    decisions: int
    mean_seconds: float
    """What clients waited for them, on average."""
    longest_seconds: float


def counts(
    engine: Engine, filters: Filters = ALL, *, by: Sequence[str] = ("action",), every: timedelta = MINUTE
) -> list[Count]:
    """Return counts by the columns `by`, of `schema.WORDS`, in stretches of time of length `every`, in time's order.

    Stretches without decisions are left out. Raises `StoreError` for another column and for a length that is not
    positive, and `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    unknown = sorted(set(by) - set(WORDS))
    if unknown:
        raise StoreError(f"nothing is counted by {unknown[0]}", field="by", remedy=f"name some of {', '.join(WORDS)}")
    length = every // timedelta(microseconds=1) * TIES
    if length <= 0:
        raise StoreError("a stretch of time has a length", field="every", remedy="give a microsecond or more")
    columns = [decisions.c[name] for name in by]
    with engine.connect() as connection:
        found = _added_up(connection, filters, _counted(length, columns))
        named = Dictionary(engine, words).all(connection) if by else {}
    counted = [
        Count(time_of(start * length), tuple(named.get(each) for each in kind), number, total / number, longest)
        for (start, *kind), (number, total, longest) in found.items()
    ]
    return sorted(counted, key=lambda each: (each.start, tuple(word or "" for word in each.words)))


def _added_up(connection: Connection, filters: Filters, counted: Select[Any]) -> dict[tuple[int, ...], Sums]:
    """Return the sums of each kind over all ranges."""
    found: dict[tuple[int, ...], Sums] = {}
    for first, last in _ranges(connection, filters):
        within = (*filters.clauses(), decisions.c.key >= first, decisions.c.key < last)
        for row in connection.execute(counted.where(*within)).all():
            kind, (number, total, longest) = tuple(row[3:]), row[:3]
            before = found.get(kind, (0, 0.0, 0.0))
            found[kind] = before[0] + number, before[1] + total, max(before[2], longest)
    return found


def _counted(length: int, columns: Sequence[ColumnElement[int]]) -> Select[Any]:
    kind = (decisions.c.key // length).label("stretch"), *columns
    seconds = decisions.c.seconds
    return select(func.count(), func.sum(seconds), func.max(seconds), *kind).group_by(*kind)


def _ranges(connection: Connection, filters: Filters) -> Iterator[tuple[int, int]]:
    """Yield ranges of keys that together hold all that is counted.

    SQLite groups by sorting. It sorts many short lists in half of the time of a long one.
    """
    ends = [
        select(decisions.c.key).where(*filters.span()).order_by(order).limit(1).scalar_subquery()
        for order in (decisions.c.key, decisions.c.key.desc())
    ]
    first, last = connection.execute(select(*ends)).one()
    if first is None:
        return
    step = (last - first) // (_PARTS if connection.dialect.name == "sqlite" else 1) + 1
    for start in range(first, last + 1, step):
        yield start, start + step
