"""What each process of a server goes by: told in a folder, a small file each, so that whoever asks finds all of them.

API processes share one port, so that nobody outside can ask a certain one.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

STALE_S = 15.0
"""How long ago a process may have written its file and still be counted."""


class ProcessState(BaseModel):
    """One process, and the policy that is in force in it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int = Field(default_factory=os.getpid)
    policy: str
    """`Policy.label`."""
    digest: str
    """`Policy.digest`."""
    since: float
    """Unix time at which it came into force."""
    problem: str | None = None
    """Why what the policy file says is not in force, where it is not."""
    seen: float = Field(default_factory=time.time)
    """Unix time at which the file was written."""


def tell(folder: Path, state: ProcessState) -> None:
    """Write a process's state. Raises `OSError` where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, state.pid)
    path.with_suffix(".new").write_text(state.model_dump_json())
    path.with_suffix(".new").replace(path)


def forget(folder: Path) -> None:
    """Take this process's state away: it ends."""
    with suppress(OSError):
        _path(folder, os.getpid()).unlink()


def states(folder: Path) -> list[ProcessState]:
    """Return the states of all processes that wrote theirs lately, by number."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(OSError, ValidationError):
            found.append(ProcessState.model_validate_json(path.read_bytes()))
    return sorted((each for each in found if time.time() - each.seen <= STALE_S), key=lambda each: each.pid)


def _path(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.json"
