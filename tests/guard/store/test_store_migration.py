"""A store's tables are made and brought up to date by one command, and a store that is not ours to use is refused."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from guard.store.errors import StoreError
from guard.store.migration import require_current, upgrade
from guard.store.schema import METADATA, VERSION_TABLE
from probes.errors import ForeguardError


def run(engine, statement):
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_the_migrations_make_the_tables_that_the_code_reads(fresh):
    """Alembic finds no difference between what the steps made and the schema."""
    with fresh.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
    require_current(fresh)


def test_a_store_that_is_up_to_date_is_left_alone(fresh):
    """A second run changes nothing and loses nothing."""
    run(fresh, "INSERT INTO foreguard_words (digest, text) VALUES ('d', 'kept')")
    upgrade(fresh)
    with fresh.connect() as connection:
        assert connection.execute(text("SELECT text FROM foreguard_words")).scalars().all() == ["kept"]


def test_several_processes_may_start_at_once(url):
    """One of them makes the tables; the others wait for it, and all go on."""
    code = "import sys; from guard.store.engine import open_store; from guard.store.migration import upgrade; "
    code += "upgrade(open_store(sys.argv[1]))"
    started = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(4)]
    assert [(each.communicate(timeout=100)[1].decode(), each.returncode) for each in started] == [("", 0)] * 4


def test_several_threads_may_start_at_once(url, opened):
    """A console in the process of a server opens the store that the server's sink does."""
    engine = opened(url)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(upgrade, [engine] * 4)) == [None] * 4
    require_current(engine)


def test_a_store_of_a_newer_foreguard_is_refused(fresh):
    """Neither to be written nor to be read; the error says to upgrade."""
    run(fresh, "UPDATE foreguard_store_version SET version_num = '9999'")
    for refuses in (upgrade, require_current):
        with pytest.raises(StoreError, match="9999") as refused:
            refuses(fresh)
        assert refused.value.field == VERSION_TABLE
        assert "upgrade Foreguard" in refused.value.remedy
        assert isinstance(refused.value, ForeguardError)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM foreguard_store_version",
        "INSERT INTO foreguard_store_version VALUES ('0002')",
        "DROP TABLE foreguard_labels",
        "ALTER TABLE foreguard_decisions DROP COLUMN seconds",
    ],
    ids=["no version", "two versions", "no table", "no column"],
)
def test_a_half_migrated_store_is_refused(fresh, damage):
    """The error names the place and the way out, and what is there is left as it is."""
    run(fresh, damage)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"half migrated|steps at once|missing") as refused:
            upgrade(fresh)
        assert refused.value.field.startswith("foreguard_")
        assert "backup" in refused.value.remedy


def test_an_empty_database_is_not_read(url, opened):
    """A console before the first server is told what to do."""
    with pytest.raises(StoreError, match="not those of this Foreguard") as refused:
        require_current(opened(url))
    assert "start a server" in refused.value.remedy


def test_a_database_out_of_reach_is_one_clear_error(opened, tmp_path):
    """The address is named without its password."""
    with pytest.raises(StoreError, match="owner") as refused:
        upgrade(opened(f"postgresql://owner:s3cret@/d?host={tmp_path}&password=s3cret"))
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None
