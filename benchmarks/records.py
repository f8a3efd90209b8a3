"""What was measured, on disk pair by pair: a run that is cut off loses one pair, and the next run goes on behind it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Arms = dict[str, dict[str, Any]]
"""One pair: for each arm, what was measured of it."""

_MEASURED = ("benchmarks", "guard", "probes", "serving")


class Records:
    """The pairs of one run, as JSON lines.

    The first line says what was measured on what; another belongs to another run.
    """

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        self._path = path
        self.about = about
        self._pairs: dict[str, list[Arms]] = {}
        self._starts: dict[str, list[int]] = {}
        self.set_aside = self._open(about)
        """Where records of other code or another machine were moved to, if there were any."""

    def _open(self, about: dict[str, str]) -> Path | None:
        text = self._path.read_text() if self._path.exists() else ""
        # A line without its end was cut off while it was written: its pair is taken again.
        lines = text[: text.rfind("\n") + 1].splitlines()
        set_aside = None
        if lines and json.loads(lines[0]) != about:
            # Named for its code, so that what was set aside before is not written over.
            set_aside = self._path.with_suffix(f".{json.loads(lines[0]).get('code', 'old')}.jsonl")
            self._path.replace(set_aside)
            lines = []
        lines = lines or [json.dumps(about)]
        self._path.write_text("".join(f"{line}\n" for line in lines))
        for line in lines[1:]:
            record = json.loads(line)
            self._keep(record["measure"], record["arms"], record.get("start", 0))
        return set_aside

    def pairs(self, measure: str) -> list[Arms]:
        """Return the pairs of `measure` that there are."""
        return self._pairs.get(measure, [])

    def starts(self, measure: str) -> list[int]:
        """Return in which start of what is measured each pair of `measure` was taken."""
        return self._starts.get(measure, [])

    def new_start(self) -> int:
        """Return a number for a start that is none of those before."""
        return 1 + max((number for each in self._starts.values() for number in each), default=-1)

    @property
    def measures(self) -> list[str]:
        """Return the measures of which there are pairs."""
        return list(self._pairs)

    def add(self, measure: str, arms: Arms, start: int = 0) -> None:
        """Keep one whole pair, and in which start it was taken."""
        self._keep(measure, arms, start)
        with self._path.open("a") as file:
            file.write(json.dumps({"measure": measure, "start": start, "arms": arms}) + "\n")

    def _keep(self, measure: str, arms: Arms, start: int) -> None:
        self._pairs.setdefault(measure, []).append(arms)
        self._starts.setdefault(measure, []).append(start)


def code_digest(root: Path = Path(), packages: Iterable[str] = _MEASURED) -> str:
    """Return a digest of the code that is measured: pairs of different code are not pairs of one run."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
