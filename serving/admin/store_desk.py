"""The store desk: what the decision store holds, and labels that operators give to its decisions."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.errors import ForeguardError
from serving.store_settings import StoreSettings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from guard.store.label import GivenLabel

_LONGEST_ID = 500
"""Characters of the longest event id that is stored."""


class NoStore(ForeguardError):
    """The server stores no decisions."""


class TooLong(ForeguardError):
    """The labels are too many for one request."""


class StoreGone(ForeguardError):
    """The database does not answer, or has no tables yet."""


class BadLabels(ForeguardError):
    """The labels cannot be read."""


@dataclass(frozen=True, slots=True)
class Given:
    """What came of labels."""

    number: int
    unknown: frozenset[str]
    """Event ids whose decisions are not in the store: mistyped, deleted since, or not written yet. Their labels are."""


class StoreDesk:
    """What an operator can do about stored decisions. Several threads may use it."""

    def __init__(self, settings: StoreSettings | None) -> None:
        """`settings` are the server's, None where it stores nothing. The database need not be there."""
        self._settings = settings
        self._engine = settings.engine() if settings is not None else None

    @property
    def settings(self) -> StoreSettings | None:
        """The server's, None where it stores nothing."""
        return self._settings

    @property
    def engine(self) -> "Engine":
        """The store's. Raises `NoStore` where there is none."""
        if self._engine is None:
            raise NoStore(
                "this server stores no decisions", field="--store", remedy="start it with `foreguard serve --store URL`"
            )
        return self._engine

    def status(self) -> dict[str, Any]:
        """Return what the store holds: `StoreStatus.to_json`. Raises `NoStore`, and `StoreGone`."""
        from guard.store.status import status

        with self._reached() as engine:
            return status(engine).to_json()

    def label(self, content: bytes, who: str) -> Given:
        """Give the labels of a JSON document, all of them or none, in the name of `who`.

        Raises `NoStore`, `BadLabels` and `StoreGone`.
        """
        from guard.store.label import Labels

        with self._reached() as engine:
            given = _given(content, who)
            labels = Labels(engine)
            number = labels.give(given)
            return Given(number, frozenset(labels.unknown({each.event_id for each in given})))

    @contextmanager
    def _reached(self) -> "Iterator[Engine]":
        """Yield the engine. Raises `StoreGone` for what goes wrong with the database."""
        engine = self.engine
        from sqlalchemy.exc import SQLAlchemyError

        from guard.store.engine import reason

        try:
            yield engine
        except SQLAlchemyError as error:
            raise StoreGone(
                f"the store cannot be reached: {reason(error, engine.url)}",
                field="--store",
                remedy="see that the database runs; decisions wait for it meanwhile, or are counted as dropped",
            ) from None


def _given(content: bytes, who: str) -> "list[GivenLabel]":
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise _bad("labels", "are no JSON") from None
    rows = document.get("labels") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise _bad("labels", "are missing")
    return [_one(f"labels[{number}]", row, who) for number, row in enumerate(rows)]


def _one(place: str, row: Any, who: str) -> "GivenLabel":
    from guard.store.label import GivenLabel, Label

    if not isinstance(row, dict) or set(row) - {"event_id", "label", "chance"}:
        raise _bad(place, "is not an object of event_id, label and perhaps chance")
    event_id, label, chance = row.get("event_id"), row.get("label"), row.get("chance")
    if not isinstance(event_id, str) or not event_id or len(event_id) > _LONGEST_ID:
        raise _bad(f"{place}.event_id", "is no event id")
    if label not in list(Label):
        raise _bad(f"{place}.label", f"is none of {', '.join(Label)}")
    if chance is not None and not _is_chance(chance):
        raise _bad(f"{place}.chance", "is no probability above 0")
    return GivenLabel(event_id, Label(label), who, "http", chance)


def _is_chance(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 < value <= 1


def _bad(field: str, problem: str) -> BadLabels:
    return BadLabels(
        f"{problem}; nothing was labelled",
        field=field,
        remedy='send {"labels": [{"event_id": "fge_…", "label": "benign"}]}, as docs/admin.md says',
    )
