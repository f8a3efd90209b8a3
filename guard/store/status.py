"""How much a store holds, and of which time."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select

from guard.store.engine import shown
from guard.store.row_key import time_of
from guard.store.schema import METADATA, decisions, labels, texts


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What a store holds now."""

    store: str
    """Its address, without a password."""
    decisions: int
    texts: int
    """Prompts that are kept, encrypted."""
    labels: int
    """Labels that were ever given."""
    size: int
    """Bytes that it takes in the database, or on the disk."""
    first: datetime | None
    """When the oldest decision was made; None where there is none."""
    last: datetime | None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it: times in ISO 8601."""
        times = {name: at.isoformat() if at else None for name, at in (("first", self.first), ("last", self.last))}
        return asdict(self) | times


def status(engine: Engine) -> StoreStatus:
    """Return what a store holds. Raises `sqlalchemy.exc.DBAPIError` where it is gone, or has no tables yet."""
    with engine.connect() as connection:
        numbers = {table.name: _rows(connection, table) for table in (decisions, texts, labels)}
        ends = connection.execute(select(func.min(decisions.c.key), func.max(decisions.c.key))).one()
        size = _size(connection)
    first, last = (None if key is None else time_of(key) for key in ends)
    return StoreStatus(
        shown(engine.url), numbers[decisions.name], numbers[texts.name], numbers[labels.name], size, first, last
    )


def _rows(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _size(connection: Connection) -> int:
    if connection.dialect.name != "sqlite":
        tables = [func.pg_total_relation_size(name) for name in METADATA.tables]
        return sum(connection.execute(select(*tables)).one())
    path = Path(connection.engine.url.database or "")
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(each.stat().st_size for each in files if each.exists())
