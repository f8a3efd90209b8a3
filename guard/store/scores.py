"""All scores of one probe in the last decisions: a million of them in well under a second.

Row by row, Python would take several. The database strings them together instead, and NumPy takes the string apart.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Engine, Select, Text, case, func, literal, select
from sqlalchemy.sql.selectable import Subquery

from guard.store.dictionary import Dictionary
from guard.store.filters import Filters
from guard.store.parts import parts
from guard.store.reader import ALL
from guard.store.row_key import TIES
from guard.store.schema import decisions, probe_sets

_AT_ONCE = 250_000
_DOUBLE = 8


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one probe, the newest first."""

    keys: NDArray[np.int64]
    """`[N]`, of the decisions: `Reader.at` and `event_ids` take them."""
    scores: NDArray[np.float64]
    """`[N]`, raw."""

    @property
    def times(self) -> NDArray[np.datetime64]:
        """`[N]`, in UTC and to the microsecond."""
        return (self.keys // TIES).view("datetime64[us]")


def probes(engine: Engine) -> list[str]:
    """Return the names of all probes and combinations that ever had a score."""
    with engine.connect() as connection:
        sets = Dictionary(engine, probe_sets).all(connection)
    return sorted({name for names in sets.values() for name in json.loads(names)})


def scores(engine: Engine, probe: str, n: int, filters: Filters = ALL) -> Scores:
    """Return the scores of a probe, or combination, in the last `n` decisions that have one and fit the filters.

    Raises `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    blocks = [_NOTHING]
    before = None
    with engine.connect() as connection:
        value = _value(engine, connection, probe)
        while value is not None and n > 0:
            wanted = select(decisions.c.key, value.label("score")).where(*filters.clauses(), value.is_not(None))
            if before is not None:
                wanted = wanted.where(decisions.c.key < before)
            block = _strung(connection, wanted.order_by(decisions.c.key.desc()).limit(min(n, _AT_ONCE)))
            blocks.append(block)
            n -= len(block.keys)
            if len(block.keys) < _AT_ONCE:
                break
            before = int(block.keys[-1])
    return Scores(np.concatenate([each.keys for each in blocks]), np.concatenate([each.scores for each in blocks]))


def event_ids(engine: Engine, among: Scores) -> list[str]:
    """Return the event ids of scores, in their order. It takes longer than the scores do: ask for those you show.

    A decision that was deleted meanwhile has the empty one.
    """
    found: dict[int, str] = {}
    keys = among.keys.tolist()
    with engine.connect() as connection:
        for some in parts(keys):
            wanted = select(decisions.c.key, decisions.c.event_id).where(decisions.c.key.in_(some))
            found.update(connection.execute(wanted).all())
    return [found.get(key, "") for key in keys]


_NOTHING = Scores(np.empty(0, np.int64), np.empty(0, np.float64))


def _value(engine: Engine, connection: Connection, probe: str) -> ColumnElement[bytes] | None:
    """Return the expression of the probe's eight bytes; None for a probe that no decision has."""
    sets = {number: json.loads(names) for number, names in Dictionary(engine, probe_sets).all(connection).items()}
    places = {number: names.index(probe) * _DOUBLE + 1 for number, names in sets.items() if probe in names}
    if not places:
        return None
    start = case(*((decisions.c.probes == number, place) for number, place in places.items()))
    return func.substr(decisions.c.scores, start, _DOUBLE)


def _strung(connection: Connection, wanted: Select[Any]) -> Scores:
    """Return the rows of a statement for keys and scores, the greatest key first."""
    rows = wanted.subquery()
    strung = _in_sqlite(rows) if connection.dialect.name == "sqlite" else _in_postgresql(rows)
    keys, packed = connection.execute(strung).one()
    if not keys:
        return _NOTHING
    if isinstance(keys, str):
        numbers = np.fromstring(keys, dtype=np.int64, sep=",")
        values = np.frombuffer(bytes.fromhex(packed), dtype="<f8")
    else:
        numbers, values = np.frombuffer(keys, dtype=">i8").astype(np.int64), np.frombuffer(packed, dtype="<f8")
    order = np.argsort(-numbers, kind="stable")  # neither database promises to string in the order of a subquery
    return Scores(numbers[order], values[order])


def _in_sqlite(rows: Subquery) -> Select[Any]:
    return select(func.group_concat(rows.c.key), func.group_concat(func.hex(rows.c.score), literal("", Text)))


def _in_postgresql(rows: Subquery) -> Select[Any]:
    return select(func.string_agg(func.int8send(rows.c.key), literal(b"")), func.string_agg(rows.c.score, literal(b"")))
