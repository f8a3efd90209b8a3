"""What a calibration leaves on disk between its stages: strict JSON, and files that are there whole or not at all."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Data that is written and read back: no key too many, and nothing changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def write_whole(path: Path, text: str) -> None:
    """Write `path` in one step, so that a run that is stopped leaves no half of it."""
    staging = path.with_suffix(".partial")
    staging.write_text(text)
    staging.replace(path)
