"""The processes of a server from outside, as Linux tells of them: memory, file descriptors, threads."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process holds."""

    resident_bytes: int
    descriptors: int
    threads: int


def usage(session: int) -> dict[str, Usage]:
    """Return what each process of a session holds, by the process's name: with its number, where names are shared."""
    found: dict[str, Usage] = {}
    for pid in sorted(session_pids(session)):
        try:
            folder = _PROC / str(pid)
            name = (folder / "comm").read_text().strip()
            resident = int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
            held = Usage(resident, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        found[name if name not in found else f"{name} {sum(key.startswith(name) for key in found) + 1}"] = held
    return found


def session_pids(session: int) -> Iterator[int]:
    """Yield the processes of a session that have not ended."""
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            try:
                # The name before it is in brackets and may hold anything.
                state, _, _, own, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(own) == session and state != "Z":
                yield int(folder.name)


def descriptors_by_kind(session: int) -> dict[str, int]:
    """Return how many descriptors the processes of a session hold, by what they are: socket, pipe, file."""
    kinds: dict[str, int] = {}
    for pid in session_pids(session):
        for link in (_PROC / str(pid) / "fd").iterdir():
            try:
                target = str(link.readlink())
            except FileNotFoundError:
                continue
            kind = target.partition(":")[0] if ":" in target else "file"
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds
