"""The last decisions as columns: what every number about an operator's own traffic is computed from.

The database strings whole columns together and NumPy takes them apart, as in `guard/store/scores.py`: row by row, a
hundred thousand decisions would take seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, Engine, Select, Text, func, literal, select
from sqlalchemy.sql.selectable import Subquery

from guard.store.dictionary import Dictionary
from guard.store.filters import Filters
from guard.store.label import Label
from guard.store.reader import ALL
from guard.store.row_key import TIES
from guard.store.schema import decisions, labels, probe_sets, words
from guard.verdict import Action

Objects = npt.NDArray[np.object_]
_AT_ONCE = 50_000
_NONE = -1
_WORDS = ("decision", "rule", "tenant", "route", "model", "judged", "unscored", "policy", "policy_digest")
_NUMBERS = ("key", *_WORDS, "probes", "prompt_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Recent:
    """N decisions, the newest first. Arrays of objects hold None where a decision has nothing there."""

    keys: npt.NDArray[np.int64]
    """`[N]`, as `guard.store.reader.Reader.at` takes them."""
    columns: Mapping[str, npt.NDArray[np.float64]]
    """Raw scores `[N]` by probe or combination, as they were recorded; NaN where a decision has none of that name."""
    actions: Objects
    """`[N]` of `Action`: what the policy said then."""
    rules: Objects
    """`[N]` of str or None."""
    tenants: Objects
    """`[N]` of str or None."""
    routes: Objects
    """`[N]` of str or None."""
    models: Objects
    """`[N]` of str or None."""
    judged: Objects
    """`[N]` of `"prompt"` or `"answer"`."""
    unscored: Objects
    """`[N]` of str or None: the value of `guard.verdict.Unscored`."""
    policies: Objects
    """`[N]` of str: `Policy.label`."""
    digests: Objects
    """`[N]` of str or None: `Policy.digest`."""
    prompt_tokens: npt.NDArray[np.int64]
    """`[N]`."""
    labels: Objects
    """`[N]` of `guard.store.label.Label` or None: the label that counts. One that was taken back is None."""
    chances: npt.NDArray[np.float64]
    """`[N]`: the probability with which the decision was picked for labelling; NaN where it is not known, and where
    there is no label.
    """
    sources: Objects
    """`[N]` of str or None: the label's `source`. Chances of one source have a factor in common, which nobody knows."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def times(self) -> npt.NDArray[np.datetime64]:
        """`[N]`, in UTC and to the microsecond."""
        return (self.keys // TIES).view("datetime64[us]")

    def rows(self, wanted: npt.NDArray[Any]) -> "Recent":
        """Return some of the decisions: by a mask `[N]`, or by their places."""
        columns = {name: column[wanted] for name, column in self.columns.items()}
        rest = {each.name: getattr(self, each.name)[wanted] for each in fields(self) if each.name != "columns"}
        return Recent(columns=columns, **rest)


def recent(engine: Engine, n: int, filters: Filters = ALL) -> Recent:
    """Return the last `n` decisions that fit. Raises `sqlalchemy.exc.DBAPIError` where the store is gone."""
    with engine.connect() as connection:
        blocks = _blocks(connection, n, filters)
        numbers = {name: np.concatenate([block.numbers[name] for block in blocks]) for name in _NUMBERS}
        named = Dictionary(engine, words).all(connection)
        sets = {number: json.loads(text) for number, text in Dictionary(engine, probe_sets).all(connection).items()}
        given = _given(connection, numbers["key"])
    order = np.argsort(-numbers["key"], kind="stable")
    columns = _columns(numbers["probes"], np.concatenate([block.scores for block in blocks]), sets)
    numbers = {name: column[order] for name, column in numbers.items()}
    said = {name: _decoded(numbers[name], named) for name in _WORDS}
    return Recent(
        keys=numbers["key"],
        columns={name: column[order] for name, column in columns.items()},
        actions=_decoded(numbers["decision"], {n: Action(named[n]) for n in np.unique(numbers["decision"]).tolist()}),
        rules=said["rule"],
        tenants=said["tenant"],
        routes=said["route"],
        models=said["model"],
        judged=said["judged"],
        unscored=said["unscored"],
        policies=said["policy"],
        digests=said["policy_digest"],
        prompt_tokens=numbers["prompt_tokens"],
        labels=_placed(given, given.labels, numbers["key"]),
        chances=_chances(given, numbers["key"]),
        sources=_placed(given, given.sources, numbers["key"]),
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """Some decisions in any order: the numbers of their columns, and their scores one after the other, in it too."""

    numbers: Mapping[str, npt.NDArray[np.int64]]
    scores: npt.NDArray[np.float64]


def _blocks(connection: Connection, n: int, filters: Filters) -> list[_Block]:
    blocks = [_Block(dict.fromkeys(_NUMBERS, np.empty(0, np.int64)), np.empty(0))]
    while n > 0:
        wanted = select(*(decisions.c[name] for name in _NUMBERS), decisions.c.scores).where(*filters.clauses())
        if len(blocks) > 1:
            wanted = wanted.where(decisions.c.key < int(blocks[-1].numbers["key"].min()))
        asked = min(n, _AT_ONCE)
        block = _strung(connection, wanted.order_by(decisions.c.key.desc()).limit(asked))
        found = len(block.numbers["key"])
        if found:
            blocks.append(block)
        if found < asked:
            break
        n -= found
    return blocks


def _strung(connection: Connection, wanted: Select[Any]) -> _Block:
    """Return the rows of a statement.

    Neither database promises to string in the order of a subquery, but each strings all columns of a statement in
    one order.
    """
    rows = wanted.subquery()
    is_sqlite = connection.dialect.name == "sqlite"
    strung = _in_sqlite(rows) if is_sqlite else _in_postgresql(rows)
    *texts, packed = connection.execute(strung).one()
    if not texts[0]:
        return _Block(dict.fromkeys(_NUMBERS, np.empty(0, np.int64)), np.empty(0))
    read = _from_text if is_sqlite else _from_bytes
    numbers = {name: read(name, text) for name, text in zip(_NUMBERS, texts, strict=True)}
    scores = np.frombuffer(bytes.fromhex(packed) if is_sqlite else packed or b"", dtype="<f8")
    return _Block(numbers, scores)


def _in_sqlite(rows: Subquery) -> Select[*tuple[Any, ...]]:
    numbers = (func.group_concat(func.coalesce(rows.c[name], _NONE)) for name in _NUMBERS)
    return select(*numbers, func.group_concat(func.hex(rows.c.scores), literal("", Text)))


def _in_postgresql(rows: Subquery) -> Select[*tuple[Any, ...]]:
    def packed(name: str) -> ColumnElement[bytes]:
        send = func.int8send if name == "key" else func.int4send
        return func.string_agg(send(func.coalesce(rows.c[name], _NONE)), literal(b""))

    scores = func.string_agg(func.coalesce(rows.c.scores, literal(b"")), literal(b""))
    return select(*(packed(name) for name in _NUMBERS), scores)


def _from_text(_name: str, text: str) -> npt.NDArray[np.int64]:
    return np.fromstring(text, dtype=np.int64, sep=",")


def _from_bytes(name: str, packed: bytes) -> npt.NDArray[np.int64]:
    return np.frombuffer(packed, dtype=">i8" if name == "key" else ">i4").astype(np.int64)


def _decoded(numbers: npt.NDArray[np.int64], words: Mapping[int, Any]) -> Objects:
    """Return the word of each number `[N]`, None for that which stands for none."""
    distinct, places = np.unique(numbers, return_inverse=True)
    found = np.empty(len(distinct), dtype=object)
    found[:] = [words.get(number) for number in distinct.tolist()]
    return np.asarray(found[places])


def _columns(
    numbers: npt.NDArray[np.int64], packed: npt.NDArray[np.float64], sets: Mapping[int, list[str]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return scores by name, from the set of names that each decision has `[N]` and all their scores in a row."""
    distinct, places = np.unique(numbers, return_inverse=True)
    counts = np.array([len(sets.get(number, ())) for number in distinct.tolist()], dtype=np.int64)[places]
    starts = np.cumsum(counts) - counts
    columns: dict[str, npt.NDArray[np.float64]] = {}
    for number in distinct.tolist():
        rows = np.flatnonzero(numbers == number)
        for place, name in enumerate(sets.get(number, ())):
            columns.setdefault(name, np.full(len(numbers), np.nan))[rows] = packed[starts[rows] + place]
    return dict(sorted(columns.items()))


@dataclass(frozen=True, slots=True)
class _Given:
    """Labels that count, in the order of their decisions."""

    keys: npt.NDArray[np.int64]
    labels: list[Label]
    chances: list[float | None]
    sources: list[str]

    def places(self, keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return where each of the decisions would stand among these, and which of them do."""
        places = np.minimum(np.searchsorted(self.keys, keys), max(len(self.keys) - 1, 0))
        return places, self.keys[places] == keys if len(self.keys) else np.zeros(len(keys), dtype=bool)


def _given(connection: Connection, keys: npt.NDArray[np.int64]) -> _Given:
    if not len(keys):
        return _Given(keys, [], [], [])
    last = select(func.max(labels.c.id)).group_by(labels.c.event_id)
    wanted = (
        select(decisions.c.key, labels.c.label, labels.c.chance, labels.c.source)
        .join(decisions, decisions.c.event_id == labels.c.event_id)
        .where(labels.c.id.in_(last), labels.c.label != Label.WITHDRAWN.value)
        .where(decisions.c.key.between(int(keys.min()), int(keys.max())))
        .order_by(decisions.c.key)
    )
    found = connection.execute(wanted).all()
    labelled = np.array([row.key for row in found], dtype=np.int64)
    return _Given(
        labelled,
        [Label(row.label) for row in found],
        [row.chance for row in found],
        [row.source for row in found],
    )


def _placed(given: _Given, words: Sequence[str], keys: npt.NDArray[np.int64]) -> Objects:
    found = np.full(len(keys), None, dtype=object)
    places, there = given.places(keys)
    found[there] = np.array(words, dtype=object)[places[there]]
    return found


def _chances(given: _Given, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    found = np.full(len(keys), np.nan)
    places, there = given.places(keys)
    chances = np.array([np.nan if chance is None else chance for chance in given.chances])
    chances[~((chances > 0) & (chances <= 1))] = np.nan  # no such probability: what anyone wrote there is not known
    found[there] = chances[places[there]]
    return found
