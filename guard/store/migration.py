"""Brings a store's tables up to date, and refuses a store that this Foreguard does not know.

A migration is one transaction, and one process makes it at a time. A store that is between two steps was therefore
left so by something else.
"""

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from guard.store.engine import for_writing, reason, shown
from guard.store.errors import StoreError
from guard.store.schema import METADATA, VERSION_TABLE

_LOCK = 0x666F7265  # any number does that everyone who migrates takes
_ALEMBIC = threading.Lock()  # it hands its context to `migrations/env.py` through one global
_RESTORE = "restore the database from a backup, or give a new one: decisions are then recorded from now on"


def upgrade(engine: Engine) -> None:
    """Make the tables, or bring those of an older Foreguard up to date. Several processes may do so at once.

    Raises `StoreError` for a store of a newer Foreguard, for one that is half migrated, and for one out of reach.
    """
    try:
        with for_writing(engine).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            if _found(connection) != _steps().get_current_head():
                _migrate(connection)
            _require_whole(connection)
    except DBAPIError as error:
        raise _out_of_reach(engine, error) from None


def require_current(engine: Engine) -> None:
    """Raise `StoreError` where a store's tables are not those that this Foreguard reads and writes."""
    try:
        with engine.connect() as connection:
            if _found(connection) != _steps().get_current_head():
                raise StoreError(
                    "the store's tables are not those of this Foreguard",
                    field=VERSION_TABLE,
                    remedy="run `foreguard store upgrade`, or start a server with this store",
                )
            _require_whole(connection)
    except DBAPIError as error:
        raise _out_of_reach(engine, error) from None


def _migrate(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, "head")


def _found(connection: Connection) -> str | None:
    """Return the step that a store is at, None for an empty database. Raises `StoreError` for any other state."""
    heads = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    if len(heads) > 1:
        raise StoreError(f"the store is at {len(heads)} steps at once", field=VERSION_TABLE, remedy=_RESTORE)
    if not heads:
        ours = sorted(METADATA.tables.keys() & set(inspect(connection).get_table_names()))
        if ours:
            raise StoreError(
                f"the store is half migrated: {', '.join(ours)} there, and no version", field=ours[0], remedy=_RESTORE
            )
        return None
    if heads[0] not in {step.revision for step in _steps().walk_revisions()}:
        raise StoreError(
            f"the store is at step {heads[0]}, which this Foreguard does not know",
            field=VERSION_TABLE,
            remedy="upgrade Foreguard to the newest version that uses this store, or give another store",
        )
    return heads[0]


def _require_whole(connection: Connection) -> None:
    """Raise `StoreError` where a table or a column is missing, in spite of what the version says."""
    found = inspect(connection)
    there = set(found.get_table_names())
    for name, table in METADATA.tables.items():
        columns = {column["name"] for column in found.get_columns(name)} if name in there else set()
        missing = sorted(set(table.columns.keys()) - columns)
        if missing:
            raise StoreError(
                f"the store is half migrated: without {', '.join(missing)}" if columns else "the table is missing",
                field=name,
                remedy=_RESTORE,
            )


def _out_of_reach(engine: Engine, error: DBAPIError) -> StoreError:
    return StoreError(
        f"{shown(engine.url)}: {reason(error, engine.url)}",
        field="store",
        remedy="see that the database runs, that the address is right, and that its user may create tables",
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _steps() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
