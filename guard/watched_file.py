"""A file that may change at any time: by an editor, by a copy that takes a while, or by the links of a ConfigMap.

It is looked at, and not listened to: change notices do not cross network file systems, and one for a link says nothing
of what the link leads to.
"""

from pathlib import Path


class WatchedFile:
    """Tells once of each new content, when it has stayed the same from one look to the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: bytes | OSError | None = None
        self._last: bytes | OSError | None = None

    def look(self) -> bytes | None:
        """Return what the file holds now, if that is new; None if it is not, or if someone may still be writing.

        Raises `OSError` likewise: once, when the file could not be read twice in a row.
        """
        found = self._read()
        is_settled, self._last = _same(found, self._last), found
        if not is_settled or _same(found, self._known):
            return None
        self._known = found
        if isinstance(found, OSError):
            raise found
        return found

    def forget(self) -> None:
        """Tell of what the file holds once more."""
        self._known = None

    def _read(self) -> bytes | OSError:
        try:
            return self._path.read_bytes()
        except OSError as error:
            return error


def _same(one: bytes | OSError, other: bytes | OSError | None) -> bool:
    if isinstance(one, OSError) and isinstance(other, OSError):
        return (type(one), one.errno) == (type(other), other.errno)
    return one == other
