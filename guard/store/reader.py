"""Reads decisions, newest first, a page at a time. A page begins where the last one ended, so that none is skipped."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Select, select

from guard.store.dictionary import Dictionary
from guard.store.filters import Filters
from guard.store.label import GivenLabel, current_labels
from guard.store.parts import parts
from guard.store.row import clean, from_row
from guard.store.schema import WORDS, decisions, probe_sets, words
from guard.store.stored import StoredDecision

ALL = Filters()


@dataclass(frozen=True, slots=True)
class Record:
    """A decision in the store, with what people say of it."""

    key: int
    """Where it stands: keys rise with time."""
    decision: StoredDecision
    label: GivenLabel | None
    """The last one, if there is any."""


class Reader:
    """Reads one store. Several threads may use it. Methods raise `sqlalchemy.exc.DBAPIError` where it is gone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._words, self._probe_sets = Dictionary(engine, words), Dictionary(engine, probe_sets)

    def recent(self, n: int, filters: Filters = ALL, before: int | None = None) -> list[Record]:
        """Return the last `n` decisions, the newest first.

        `before` is the key of the last record of the page before this one.
        """
        wanted = _wanted(filters).order_by(decisions.c.key.desc()).limit(n)
        if before is not None:
            wanted = wanted.where(decisions.c.key < before)
        with self._engine.connect() as connection:
            return self._records(connection, wanted)

    def decision(self, event_id: str) -> Record | None:
        """Return the decision of an event id, None where the store has none."""
        with self._engine.connect() as connection:
            found = self._records(connection, select(decisions).where(decisions.c.event_id == clean(event_id)))
        return found[0] if found else None

    def at(self, keys: Collection[int]) -> list[Record]:
        """Return the decisions with these keys, in that order. Those that were deleted meanwhile are left out."""
        found: dict[int, Record] = {}
        with self._engine.connect() as connection:
            for some in parts(list(keys)):
                wanted = select(decisions).where(decisions.c.key.in_(some))
                found.update((record.key, record) for record in self._records(connection, wanted))
        return [found[key] for key in keys if key in found]

    def pages(self, filters: Filters = ALL, size: int = 5000) -> Iterator[list[Record]]:
        """Yield all decisions, the oldest first, in pages of `size`.

        Each page is a transaction of its own: however long the pages take, they hold no writer up.
        """
        after = -1
        while True:
            wanted = _wanted(filters).where(decisions.c.key > after).order_by(decisions.c.key).limit(size)
            with self._engine.connect() as connection:
                page = self._records(connection, wanted)
            if page:
                yield page
            if len(page) < size:
                return
            after = page[-1].key

    def _records(self, connection: Connection, wanted: Select[tuple[object, ...]]) -> list[Record]:
        rows = [dict(row) for row in connection.execute(wanted).mappings()]
        numbers = {row[name] for row in rows for name in WORDS if row[name] is not None}
        named = self._words.words(connection, numbers)
        sets = self._probe_sets.words(connection, {row["probes"] for row in rows if row["probes"] is not None})
        given = current_labels(connection, [row["event_id"] for row in rows])
        return [Record(row["key"], from_row(row, named, sets), given.get(row["event_id"])) for row in rows]


def _wanted(filters: Filters) -> Select[tuple[object, ...]]:
    return select(decisions).where(*filters.clauses())
