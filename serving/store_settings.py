"""What the operator wants of the decision store, from the launch to the API processes and to the administration.

The address may hold a password, and there is a key. So neither travels in the environment, which vLLM's engines
inherit, nor in an argument. They lie in memory that belongs to the launch's process: others of the same user open it
by a path, and it is gone with that process, however that ends.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from guard.store.packages import require_packages

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from guard.store.cipher import Cipher
    from guard.store.retention import Retention

STORE = "FOREGUARD_STORE"
"""Environment variable: the address of the decision store."""
STORE_KEY = "FOREGUARD_STORE_KEY"
"""Environment variable: the keys that seal prompts (`guard.store.cipher`)."""
REPLICA = "FOREGUARD_REPLICA"
"""Environment variable: the name of this server in what it records; its host's name, if it has none."""
_LIES_AT = "FOREGUARD_STORE_SETTINGS"


class StoreSettings(BaseModel):
    """Where decisions are stored, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(repr=False)
    texts: bool = False
    """Whether prompts are kept, too."""
    keys: str = Field(default="", repr=False)
    """As `STORE_KEY` has them."""
    days: float = 90
    """For how long decisions are kept."""
    text_days: float = 7
    """For how long prompts are."""
    most: int = 10_000_000
    """How many decisions are kept."""

    def engine(self) -> "Engine":
        """Return an engine for the store, which connects when it is first used. Raises `StoreError`."""
        require_packages()
        from guard.store.engine import engine_for

        return engine_for(self.url)

    def cipher(self) -> "Cipher | None":
        """Return what seals and opens prompts, None where none are kept. Raises `StoreError` for bad keys."""
        require_packages()
        from guard.store.cipher import Cipher

        return Cipher(self.keys) if self.texts else None

    def retention(self) -> "Retention":
        """Return what is kept. Raises `StoreError` where nothing would be."""
        from datetime import timedelta

        from guard.store.retention import Retention

        return Retention(timedelta(days=self.days), self.most, timedelta(days=self.text_days))

    def publish(self) -> None:
        """Tell the processes that this one is about to start."""
        memory = os.memfd_create("foreguard-store", os.MFD_CLOEXEC)
        os.write(memory, self.model_dump_json().encode())
        os.environ[_LIES_AT] = f"/proc/{os.getpid()}/fd/{memory}"


def store_settings() -> StoreSettings | None:
    """Return what the launch has published, None where no decisions are stored."""
    path = settings_path()
    return None if path is None else StoreSettings.model_validate_json(path.read_bytes())


def settings_path() -> Path | None:
    """Return where the published settings lie. One process of a server may hold a lock on that file."""
    path = os.environ.get(_LIES_AT)
    return Path(path) if path else None


def withdraw() -> None:
    """Publish nothing."""
    path = os.environ.pop(_LIES_AT, "")
    with suppress(OSError, ValueError):
        prefix = f"/proc/{os.getpid()}/fd/"
        if path.startswith(prefix):
            os.close(int(path.removeprefix(prefix)))
