"""The decision store, before a server starts: what was asked for is checked, and its secrets leave the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from guard.store.errors import StoreError
from serving.store_settings import STORE, STORE_KEY, StoreSettings, withdraw


def take_store(wanted: StoreSettings | None) -> StoreSettings | None:
    """Take the store's address and keys out of the environment, and return what is wanted with them.

    Whether the database is there is not asked: it may come later. Raises `StoreError` for an address that names no
    store, for a missing package, for a missing or weak key, and where nothing would be kept.
    """
    os.environ.pop(STORE, None)
    keys = os.environ.pop(STORE_KEY, "")
    if wanted is None:
        return None
    settings = wanted.model_copy(update={"keys": keys if wanted.texts else ""})
    settings.engine()
    settings.retention()
    if settings.texts and not keys.strip():
        raise StoreError(
            "prompts are stored encrypted, and there is no key",
            field=STORE_KEY,
            remedy="make one with `foreguard store key` and set it, or leave --store-texts out",
        )
    settings.cipher()
    return settings


@contextmanager
def stored(settings: StoreSettings | None) -> Iterator[None]:
    """Have the server's processes store their decisions, where that is asked for."""
    if settings is None:
        withdraw()
        yield
        return
    settings.publish()
    try:
        yield
    finally:
        withdraw()
