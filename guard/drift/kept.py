"""What drift detection keeps over a restart, in a folder that several processes may share.

Each process holds a *place*, a numbered file with a lock beside it. The kernel lets go of the lock when the process
ends, however it ends. Whoever comes next takes the free place whose content was made under the same conditions, and
goes on from there; pids and names of containers, which are others after a restart, have no say. Processes that watch
under the same conditions may come back in each other's places: their evidence is against the same hypothesis.

What a process saw between the last time it kept its state and its end is lost. Evidence stays valid without it: the
e-process of the requests that were counted is one, as long as what they scored did not choose when the process ended.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from guard.drift.state import SinkState

logger = logging.getLogger("vllm.foreguard.drift")

OLDEST_S = 7 * 86_400.0
"""A state that nobody went on with for so long tells of other times."""
_MOST_PLACES = 1024


class Conditions(BaseModel):
    """Under which evidence was gathered. Another process goes on with it under the same ones alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: list[str]
    """Digests of the artifacts, the model's first."""
    references: dict[str, dict[str, str]]
    """By adapter and score, the digest of what it is compared with."""
    settings: dict[str, Any]
    """`DriftSettings`, by name."""
    acknowledged: float
    """When an operator last said that alarms were understood, in Unix time; 0 for never."""

    def change(self, other: "Conditions") -> str | None:
        """Return what is otherwise in `other`, for a person; None where nothing is."""
        if self.artifacts != other.artifacts:
            return "another artifact is served"
        if self.references != other.references:
            return "the policy reads other scores, or calibration's benign ones are others"
        named = [name for name, value in self.settings.items() if other.settings.get(name) != value]
        if named or self.settings.keys() != other.settings.keys():
            return f"other settings: {', '.join(named) or 'there are more'}"
        return None if self.acknowledged == other.acknowledged else "an operator acknowledged what it had found"


class Kept(BaseModel):
    """The content of a place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    conditions: Conditions
    state: SinkState


@dataclass(frozen=True, slots=True)
class Place:
    """A place that this process holds until `leave`, or until it ends."""

    path: Path
    lock: FileLock

    def keep(self, conditions: Conditions, state: SinkState) -> None:
        """Write the state, whole or not at all. Raises `OSError`."""
        beside = self.path.with_suffix(".new")
        with beside.open("w") as file:
            file.write(Kept(conditions=conditions, state=state).model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def leave(self) -> None:
        """Let another process have it."""
        self.lock.release()


def take_place(folder: Path, conditions: Conditions) -> tuple[Place, SinkState | None]:
    """Return a place in `folder`, and the state to go on from, if there is one. Why there is none is logged.

    A free place with a state that fits goes first, then any free one, then a new one. Raises `OSError` where the
    folder cannot be written, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fallback: Place | None = None
    reasons: list[str] = []
    try:
        for place in _free(folder):
            found = _read(place.path, conditions)
            if isinstance(found, SinkState):
                logger.info("drift detection goes on from %s: %s prompts", place.path.name, found.decisions)
                return place, found
            if found is not None:
                reasons.append(found)
            if fallback is None:
                fallback = place
            else:
                place.leave()
            if found is None:
                break  # it is a new one, and there are no more
        if fallback is None:
            raise OSError(f"all {_MOST_PLACES} places in {folder} are taken")
        if reasons:
            logger.warning("drift detection begins anew: %s", "; ".join(dict.fromkeys(reasons)))
        taken, fallback = fallback, None
        return taken, None
    finally:
        if fallback is not None:
            fallback.leave()


def _free(folder: Path) -> Iterator[Place]:
    """Yield the places that no process holds, in order, each held by this one now; the last one is new."""
    taken = {int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()}
    for number in [*sorted(taken), *(new for new in range(_MOST_PLACES) if new not in taken)]:
        path = folder / f"{number}.json"
        lock = FileLock(path.with_suffix(".lock"), blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        except NotImplementedError as error:
            raise OSError(f"{folder} is on a file system without locks") from error
        yield Place(path, lock)


def _read(path: Path, conditions: Conditions) -> SinkState | str | None:
    """Return the state in a place, or why it does not do; None where there is none."""
    try:
        age = time.time() - path.stat().st_mtime
        kept = Kept.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        return f"{path} cannot be read ({type(error).__name__})"
    if age > OLDEST_S:
        return f"{path} is {age / 86_400:.0f} days old"
    return kept.conditions.change(conditions) or kept.state
