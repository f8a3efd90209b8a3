"""An empty store for every test of the statistics."""

import pytest

from guard.store.engine import open_store
from guard.store.migration import upgrade


@pytest.fixture
def store(tmp_path):
    """The engine of an empty SQLite store."""
    engine = open_store(f"sqlite:///{tmp_path}/decisions.db")
    upgrade(engine)
    yield engine
    engine.dispose()
