"""The drift desk: what each of the server's processes says of drift, and an operator's word that it was understood."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.state import ACKNOWLEDGED, DRIFT

_STALE_S = 30.0
"""How long ago a process may have told and still be heard: it tells every five seconds."""


class DriftDesk:
    """What an operator can do about drift."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the state folder."""
        self._folder = folder / DRIFT

    def processes(self) -> list[dict[str, Any]]:
        """Return of each process its number, and what it found: `DriftSnapshot.to_json`."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with suppress(OSError, ValueError):
                if time.time() - path.stat().st_mtime <= _STALE_S:
                    found.append({"pid": int(path.stem), "drift": json.loads(path.read_bytes())})
        return found

    def acknowledge(self) -> None:
        """Have every process begin anew. Raises `OSError` where that cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / ACKNOWLEDGED).touch()
