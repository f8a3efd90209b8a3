"""Opens a store: SQLite in WAL mode from a file, or PostgreSQL through psycopg. No password leaves this file."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from guard.store.errors import StoreError
from guard.store.packages import INSTALL

BUSY_S = 5.0
"""How long a statement waits for SQLite's one writer before it is refused."""
_REMEDY = "name it as sqlite:///path/to/decisions.db or postgresql://user:password@host/database"
_POSTGRES = {"postgres", "postgresql", "postgresql+psycopg"}
_PATIENCE = {
    # A server that stopped answering must be found out: without these, a read waits for ever.
    "connect_timeout": 5,
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 15,
    "application_name": "foreguard",
}


def open_store(url: str) -> Engine:
    """Return an engine for the store at `url`. It connects when it is first used.

    A SQLite file and its folder are made where they are missing, and nobody else on the machine may read the file.
    Raises `StoreError` as `engine_for` does, and where the file cannot be made.
    """
    engine = engine_for(url)
    if engine.dialect.name == "sqlite":
        make_file(engine.url)
    return engine


def engine_for(url: str) -> Engine:
    """Return an engine for the store at `url`, and touch neither disk nor network.

    Raises `StoreError` for an address that names no store, and where the database's driver is not installed.
    """
    address = parse(url)
    if address.get_backend_name() == "sqlite":
        return _sqlite(address)
    settings = {name: value for name, value in _PATIENCE.items() if name not in address.query}
    try:
        return create_engine(address, hide_parameters=True, pool_pre_ping=True, pool_size=4, connect_args=settings)
    except ImportError:  # psycopg is missing, or its libpq
        raise StoreError("PostgreSQL is reached by the package psycopg", field="store", remedy=INSTALL) from None


def parse(url: str) -> URL:
    """Return a store's address. Raises `StoreError`, which shows nothing of the address, for any other."""
    try:
        address = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise StoreError("the address of the store cannot be read", field="store", remedy=_REMEDY) from None
    if address.drivername in _POSTGRES:
        return address.set(drivername="postgresql+psycopg")
    if address.drivername != "sqlite":
        raise StoreError(f"{address.drivername!r} is no kind of store", field="store", remedy=_REMEDY)
    if address.database in (None, "", ":memory:") or address.query:
        raise StoreError("a SQLite store is a file", field="store", remedy=_REMEDY)
    return address


def shown(url: str | URL) -> str:
    """Return an address as logs may have it: without password and without settings. Raises `StoreError` likewise."""
    address = parse(url) if isinstance(url, str) else url
    return address.set(query={}).render_as_string(hide_password=True)


def reason(error: BaseException, address: URL) -> str:
    """Return in one line what a database said, without the statement, its values and the password."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    line = " ".join(str(said).split()) or type(said).__name__
    for secret in (address.password, address.query.get("password"), address.query.get("sslpassword")):
        if secret:
            line = line.replace(str(secret), "***")
    return line[:500]


def for_writing(engine: Engine) -> Engine:
    """Return the engine whose transactions write from their first statement on.

    In SQLite a transaction that begins by reading is refused at once, instead of waiting, where another one wrote
    meanwhile.
    """
    return engine.execution_options(foreguard_writes=True)


def make_file(address: URL) -> None:
    """Make a SQLite store's file, empty, where it is missing. Raises `StoreError` where that cannot be done."""
    path = Path(address.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be opened: {error.strerror}",
            field="store",
            remedy="name a file in a folder that this process may write",
        ) from error


def file_of(engine: Engine) -> tuple[int, int] | None:
    """Return which file a SQLite store's name leads to now; None where there is no file, or the store is another."""
    if engine.dialect.name != "sqlite":
        return None
    try:
        found = Path(engine.url.database or "").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sqlite(address: URL) -> Engine:
    engine = create_engine(address, hide_parameters=True, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, and not where Python's driver guesses
        _write_ahead(connection)
        for pragma in ("synchronous=NORMAL", "cache_size=-32768", "journal_size_limit=67108864", "temp_store=MEMORY"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("foreguard_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Put a new file into WAL mode. Where two processes do so at once, SQLite refuses one without letting it wait."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
