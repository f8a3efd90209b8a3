"""What a calibration leaves on disk between its stages: strict JSON, and files that are there whole or not at all."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from probes.errors import CalibrationError

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is too large",
}


class Strict(BaseModel):
    """Data that is written and read back: no key too many, and nothing changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write; what was written stands at `path` at the end, in one step.

    A run that is stopped leaves no half of it. Raises `CalibrationError` where there is no room; the half is removed.
    """
    staging = path.with_suffix(".partial")
    with room_for(path):
        try:
            yield staging
            staging.replace(path)
        except (OSError, SafetensorError):
            staging.unlink(missing_ok=True)
            raise


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Within the block, a disk that fills up is a `CalibrationError` that says so; other failures stay what they
    are.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = _no_room(error)
        if problem is None:
            raise
        raise CalibrationError(
            f"{problem}: {path.name} could not be written",
            field=str(path.parent),
            remedy="make room there and give the same command again: what is finished is kept. Or use --limit",
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Write `path` in one step, so that a run that is stopped leaves no half of it. Raises as `written_whole`."""
    with written_whole(path) as staging:
        staging.write_text(text)


def _no_room(error: OSError | SafetensorError) -> str | None:
    if isinstance(error, OSError):
        return _NO_ROOM.get(error.errno or 0)
    # safetensors gives the system's error as text only.
    return next((problem for code, problem in _NO_ROOM.items() if f"(os error {code})" in str(error)), None)
