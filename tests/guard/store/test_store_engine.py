"""Addresses of stores: what they may be, what of them is shown, and how a SQLite store is opened."""

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from guard.store.engine import open_store, parse, reason, shown
from guard.store.errors import StoreError
from guard.store.migration import upgrade


@pytest.mark.parametrize(
    "address",
    [
        "nonsense s3cret",
        "mysql://user:s3cret@host/database",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file?key=s3cret",
        "postgresql+psycopg2://user:s3cret@host/database",
        "postgresql://user:s3cret@host:port/database",
    ],
)
def test_an_address_of_no_store_is_refused_without_being_shown(address):
    """What a person mistypes may be a password."""
    with pytest.raises(StoreError) as refused:
        open_store(address)
    assert "s3cret" not in repr(refused.value)
    assert "sqlite:///" in refused.value.remedy


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_has_three_names(scheme):
    """All of them mean psycopg, the driver that comes with Foreguard."""
    assert parse(f"{scheme}://user@host/database").drivername == "postgresql+psycopg"


def test_logs_show_where_a_store_is_and_no_secret():
    """Passwords stand before the @, or among the settings."""
    where = shown("postgresql://user:s3cret@host/database?sslpassword=s3cret")
    assert where == "postgresql+psycopg://user:***@host/database"


def test_what_a_database_said_is_shown_without_the_password():
    """A driver may repeat what it was given."""
    address = parse("postgresql://user:s3cret@host/database")
    assert reason(OSError("no route\nfor user:s3cret"), address) == "no route for user:***"


def test_only_its_owner_may_read_a_sqlite_store(sqlite_url, opened, tmp_path):
    """Its scores would tell an attacker how near to a block a prompt was."""
    upgrade(opened(sqlite_url))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "store").iterdir()}
    assert modes["decisions.db"] == 0o600
    assert set(modes.values()) == {0o600}


def test_sqlite_writes_ahead(sqlite_url, opened):
    """Readers and the writer do not wait for each other, and a commit is one write."""
    with opened(sqlite_url).connect() as connection:
        found = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 1]


def test_many_open_a_new_sqlite_store_at_once(opened, tmp_path):
    """SQLite refuses one of two that put a file into WAL mode, and does not let it wait. Here it is tried again."""
    for number in range(15):
        engines = [opened(f"sqlite:///{tmp_path}/{number}.db") for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(upgrade, engines)) == [None] * 4


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    """The file is named, and what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/store\.db") as refused:
        open_store(f"sqlite:///{tmp_path}/file/store.db")
    assert "folder" in refused.value.remedy
