"""Progress bars: on standard error, and only where a person watches, so that output stays fit for a pipe or a log."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

_Item = TypeVar("_Item")


def track(items: Iterable[_Item], title: str, total: int | None = None) -> Iterator[_Item]:
    """Yield the items, showing how many are done; `total` says how many there will be where they have no length."""
    console = Console(stderr=True)
    yield from _track(items, title, total=total, console=console, transient=True, disable=not console.is_terminal)
