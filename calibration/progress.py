"""Progress bars: on standard error, and only where a person watches, so that output stays fit for a pipe or a log."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

_Item = TypeVar("_Item")


def track(items: Sequence[_Item], title: str) -> Iterator[_Item]:
    """Yield the items, showing how many are done."""
    console = Console(stderr=True)
    yield from _track(items, title, console=console, transient=True, disable=not console.is_terminal)
