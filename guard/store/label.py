"""Labels: what people say of decisions, by event id. Rows are only ever added, and the last one of an event counts."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select

from guard.store.engine import for_writing
from guard.store.parts import parts
from guard.store.row import clean
from guard.store.row_key import TIES, microseconds, time_of
from guard.store.schema import decisions, labels


class Label(StrEnum):
    """What a prompt is."""

    BENIGN = "benign"
    HARMFUL = "harmful"
    UNSURE = "unsure"
    WITHDRAWN = "withdrawn"
    """The label before is taken back, and none takes its place."""


@dataclass(frozen=True, slots=True)
class GivenLabel:
    """One row: a label that somebody gave."""

    event_id: str
    label: Label
    who: str
    source: str
    """How it came about, such as `review` or `csv`."""
    chance: float | None = None
    """The probability with which this decision was picked for labelling, if it is known: what estimates weigh by."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Labels:
    """The labels of one store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def give(self, given: Iterable[GivenLabel]) -> int:
        """Add labels, all of them or none, and return how many. The store need not have their decisions.

        Raises `sqlalchemy.exc.DBAPIError` where they cannot be written.
        """
        rows = [_row(each) for each in given]
        with for_writing(self._engine).begin() as connection:
            for some in parts(rows):
                connection.execute(insert(labels), some)
        return len(rows)

    def history(self, event_id: str) -> list[GivenLabel]:
        """Return every label that an event was given, the first one first."""
        with self._engine.connect() as connection:
            wanted = select(labels).where(labels.c.event_id == clean(event_id)).order_by(labels.c.id)
            return [_given(row) for row in connection.execute(wanted)]

    def current(self, event_ids: Collection[str]) -> dict[str, GivenLabel]:
        """Return the labels that count, by event id."""
        with self._engine.connect() as connection:
            return current_labels(connection, event_ids)

    def unknown(self, event_ids: Collection[str]) -> set[str]:
        """Return those event ids whose decisions are not in the store: mistyped, or deleted since."""
        there: set[str] = set()
        with self._engine.connect() as connection:
            for some in parts(sorted(set(event_ids))):
                there.update(
                    connection.execute(select(decisions.c.event_id).where(decisions.c.event_id.in_(some))).scalars()
                )
        return set(event_ids) - there


def current_labels(connection: Connection, event_ids: Collection[str]) -> dict[str, GivenLabel]:
    """Return the labels that count, by event id. One that was taken back is left out."""
    found = {}
    for some in parts(sorted(event_ids)):
        last = select(func.max(labels.c.id)).where(labels.c.event_id.in_(some)).group_by(labels.c.event_id)
        for row in connection.execute(select(labels).where(labels.c.id.in_(last))):
            if row.label != Label.WITHDRAWN:
                found[row.event_id] = _given(row)
    return found


def _row(given: GivenLabel) -> dict[str, Any]:
    return {
        "event_id": clean(given.event_id),
        "label": Label(given.label).value,
        "who": clean(given.who),
        "time": microseconds(given.at),
        "source": clean(given.source),
        "chance": given.chance,
    }


def _given(row: Row[Any]) -> GivenLabel:
    at = time_of(row.time * TIES)
    return GivenLabel(row.event_id, Label(row.label), row.who, row.source, row.chance, at)
