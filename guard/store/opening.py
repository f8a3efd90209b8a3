"""A store as commands use it: opened, and closed; what goes wrong meanwhile is a `StoreError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from guard.store.errors import StoreError
from guard.store.packages import require_packages

if TYPE_CHECKING:
    from sqlalchemy import Engine


@contextmanager
def opened_store(url: str) -> "Iterator[Engine]":
    """Yield a store's engine.

    Raises `StoreError` for an address that names no store, for missing packages, and for what goes wrong with the
    database meanwhile.
    """
    require_packages()
    from sqlalchemy.exc import SQLAlchemyError

    from guard.store.engine import open_store, reason

    engine = open_store(url)
    try:
        yield engine
    except SQLAlchemyError as error:
        raise StoreError(
            f"cannot be reached: {reason(error, engine.url)}", field="--store", remedy="see that the database runs"
        ) from None
    finally:
        engine.dispose()


@contextmanager
def current_store(url: str) -> "Iterator[Engine]":
    """Yield the engine of a store whose tables are there. Raises `StoreError` likewise, and for other tables."""
    with opened_store(url) as engine:
        from guard.store.migration import require_current

        require_current(engine)
        yield engine
