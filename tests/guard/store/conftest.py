"""Stores of both kinds, and decisions to put into them."""

from pathlib import Path

import pytest

from guard.store.engine import open_store
from guard.store.migration import upgrade
from guard.store.schema import METADATA
from tests.guard.store.postgres import Postgres, find_postgres


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave these tests to `make test-long`: no server writes to a store yet."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def postgres():
    """A running server, the session's own."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = Postgres(programs)
    yield server
    server.close()


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path / 'store' / 'decisions.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """The address of an empty store, once of each kind."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return request.getfixturevalue("postgres").new_store()


@pytest.fixture
def opened():
    """Opens stores, and closes their connections at the end."""
    engines = []

    def open_one(url):
        engines.append(open_store(url))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.dispose()


@pytest.fixture
def fresh(url, opened):
    """A store of the test's own, whose tables are made: for tests that change more than rows."""
    engine = opened(url)
    upgrade(engine)
    return engine


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def shared(request, tmp_path_factory):
    """A store of each kind, whose tables are made once."""
    if request.param == "sqlite":
        engine = open_store(f"sqlite:///{tmp_path_factory.mktemp('shared')}/decisions.db")
    else:
        engine = open_store(request.getfixturevalue("postgres").new_store())
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(shared):
    """A store that holds nothing."""
    with shared.begin() as connection:
        for table in METADATA.tables.values():
            connection.execute(table.delete())
    return shared
