"""Writes decisions, many in one transaction: all of them are in the store afterwards, or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from guard.store.cipher import Cipher
from guard.store.dictionary import Dictionary
from guard.store.engine import for_writing
from guard.store.row import ROW_ERRORS, Row, clean, to_row
from guard.store.row_key import TIES, microseconds
from guard.store.schema import decisions, probe_sets, texts, words
from guard.store.stored import StoredDecision

# A row that no database takes, such as one of the year 3000. Anything else is the database's state, and will pass.
_ROW_ERRORS = (DataError, IntegrityError, OverflowError)


@dataclass(frozen=True, slots=True)
class KeptText:
    """A prompt that the operator wants kept."""

    event_id: str
    text: str
    at: datetime


class Batches:
    """Writes batches to one store, whose tables are up to date."""

    def __init__(self, engine: Engine, cipher: Cipher | None = None) -> None:
        """Without a `cipher` no text may be given."""
        self._engine, self._cipher = for_writing(engine), cipher
        self._words, self._probe_sets = Dictionary(engine, words), Dictionary(engine, probe_sets)
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def write(self, batch: Sequence[StoredDecision], kept: Sequence[KeptText] = ()) -> int:
        """Write decisions and texts, and return how many of them no database would take.

        What the store has already is left as it is: a batch whose fate is unknown can be written again. Raises
        `sqlalchemy.exc.DBAPIError` where nothing can be written now, and nothing is.
        """
        rows = [row for each in batch if (row := _row(each)) is not None]
        return len(batch) - len(rows) + self._write(rows, kept)

    def _write(self, rows: Sequence[Row], kept: Sequence[KeptText]) -> int:
        """Write rows and texts in one transaction, and return how many no database takes."""
        numbered, sealed = self._numbered(rows), [self._sealed(each) for each in kept]
        try:
            with self._engine.begin() as connection:
                self._write_rows(connection, numbered)
                if sealed:
                    connection.execute(self._insert(texts).on_conflict_do_nothing(), sealed)
        except _ROW_ERRORS:
            if len(rows) + len(kept) == 1:
                return 1
            # Each for itself: one bad row is no reason to lose the others.
            return sum(self._write([each], []) for each in rows) + sum(self._write([], [each]) for each in kept)
        return 0

    def _numbered(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        numbers = self._words.numbers({word for row in rows for word in row.words.values()})
        sets = self._probe_sets.numbers({row.probes for row in rows if row.probes is not None})
        return [row.numbered(numbers, sets) for row in rows]

    def _sealed(self, kept: KeptText) -> dict[str, Any]:
        if self._cipher is None:
            raise ValueError("a text without a cipher")
        event_id = clean(kept.event_id)
        sealed = self._cipher.seal(kept.text, event_id)
        return {"event_id": event_id, "time": microseconds(kept.at), "sealed": sealed}

    def _write_rows(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        insert = self._insert(decisions).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
        if connection.execute(insert, rows).rowcount == len(rows):
            return
        # Rare: some were there before, or two decisions of one microsecond got one key.
        ids = {row["event_id"]: row for row in rows}
        there = connection.execute(select(decisions.c.event_id).where(decisions.c.event_id.in_(ids))).scalars()
        for event_id in there:
            ids.pop(event_id)
        for row in ids.values():
            _write_beside(lambda row: connection.execute(insert, row).rowcount, row)


def _row(decision: StoredDecision) -> Row | None:
    try:
        return to_row(decision)
    except ROW_ERRORS:
        return None


def _write_beside(write: Callable[[dict[str, Any]], int], row: dict[str, Any]) -> None:
    """Write a row whose key another decision has, under the next key of its microsecond that is free."""
    first = row["key"] - row["key"] % TIES
    for step in range(1, TIES):
        if write(row | {"key": first + (row["key"] + step) % TIES}):
            return
