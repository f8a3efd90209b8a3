"""Words that decisions hold by number: written once each, and remembered by each process that uses them."""

import hashlib
from collections.abc import Collection

from sqlalchemy import Connection, Engine, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from guard.store.engine import for_writing


def digest_of(word: str) -> str:
    """Return what a dictionary finds a word by."""
    return hashlib.sha256(word.encode()).hexdigest()


class Dictionary:
    """One table of words. Several threads may use it."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self._engine, self._table = engine, table
        self._numbers: dict[str, int] = {}
        self._words: dict[int, str] = {}

    def numbers(self, words: Collection[str]) -> dict[str, int]:
        """Return the number of each word, and write down the new ones.

        They are written in a transaction of their own: numbers that are remembered then hold, whatever becomes of the
        decisions that use them.
        """
        new = sorted(set(words) - self._numbers.keys())  # in one order everywhere, so that no two processes deadlock
        if new:
            insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
            rows = [{"digest": digest_of(word), "text": word} for word in new]
            with for_writing(self._engine).begin() as connection:
                connection.execute(insert(self._table).on_conflict_do_nothing(), rows)
                self._learn(connection)
        return self._numbers

    def words(self, connection: Connection, numbers: Collection[int]) -> dict[int, str]:
        """Return the word of each number."""
        if not self._words.keys() >= set(numbers):
            self._learn(connection)
        return self._words

    def all(self, connection: Connection) -> dict[int, str]:
        """Return every word there is now, by number."""
        self._learn(connection)
        return self._words

    def _learn(self, connection: Connection) -> None:
        """Read all words. Numbers of other processes may come in any order, so that there is no "what is new"."""
        found = dict(connection.execute(select(self._table.c.id, self._table.c.text)).all())
        # Whoever goes through the old ones meanwhile is not disturbed.
        self._words, self._numbers = found, {word: number for number, word in found.items()}
