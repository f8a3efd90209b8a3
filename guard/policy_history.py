"""The history of a server's policies: each text that was in force, and an audit log of who put it there, and when.

A folder has `audit.jsonl`, a line for each change and only ever appended to, and `policies/REVISION.yaml`, each text
once. A line is on the disk before the change it tells of.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from probes.errors import PolicyError

_REVISION = re.compile(r"[0-9a-f]{16}")


def revision_of(content: bytes) -> str:
    """Return what tells one content of a policy file from another: 16 digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


class Change(BaseModel):
    """One line of the audit log."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    who: str
    what: Literal["applied", "rolled back", "found"]
    """`found` is a content of the policy file that came there some other way."""
    revision: str
    before: str | None = None
    """The revision that it took the place of."""
    label: str
    """`Policy.label` of the file's policy; empty where the file is none."""


class PolicyHistory:
    """The folder of one server's history. One process writes it."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "audit.jsonl"
        self._texts = folder / "policies"

    def record(self, change: Change, content: bytes) -> None:
        """Write a change down, which is about to be made. Raises `OSError` where that cannot be done."""
        self._texts.mkdir(parents=True, exist_ok=True)
        text = self._texts / f"{change.revision}.yaml"
        if not text.exists():
            _write(text.with_suffix(".new"), content, os.O_TRUNC)
            text.with_suffix(".new").replace(text)
        _write(self._log, self._gap() + change.model_dump_json().encode() + b"\n", os.O_APPEND)

    def changes(self) -> list[Change]:
        """Return all changes, the last one first. A line that was cut off by a crash is left out."""
        return list(self._read())[::-1]

    def text(self, revision: str) -> bytes:
        """Return the policy file's content of that revision. Raises `PolicyError` for one that is not there."""
        path = self._texts / f"{revision}.yaml"
        if not (_REVISION.fullmatch(revision) and path.is_file()):
            raise PolicyError(
                f"no revision {revision!r} is in the history", field="revision", remedy="name one of the history's"
            )
        return path.read_bytes()

    def _read(self) -> Iterator[Change]:
        if not self._log.exists():
            return
        for line in self._log.read_bytes().splitlines():
            try:
                yield Change.model_validate_json(line)
            except ValidationError:
                continue

    def _gap(self) -> bytes:
        """Return a line's end where the last line was cut off."""
        if not self._log.exists():
            return b""
        with self._log.open("rb") as log:
            if log.seek(0, os.SEEK_END) == 0:
                return b""
            log.seek(-1, os.SEEK_END)
            return b"" if log.read(1) == b"\n" else b"\n"


def _write(path: Path, content: bytes, how: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(content)
        os.fsync(file)
    finally:
        os.close(file)
