"""Progress on standard error, so that output stays fit for a pipe: bars where a person watches, else lines for a
log.
"""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import track as _track

_Item = TypeVar("_Item")

_EVERY_S = 30.0
"""Seconds between two lines about one stage in a log."""


def track(items: Iterable[_Item], title: str, total: int | None = None) -> Iterator[_Item]:
    """Yield the items, showing how many are done: a bar in a terminal, a line every half minute in a log.

    `total` says how many there will be where the items have no length.
    """
    console = _console()
    if console.is_terminal:
        yield from _track(items, title, total=total, console=console, transient=True)
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    began = said = time.monotonic()
    for number, item in enumerate(items):
        yield item
        if (now := time.monotonic()) - said >= _EVERY_S:
            said = now
            done = f"{number + 1}" if total is None else f"{number + 1} of {total}"
            console.print(f"  {title}: {done}, {now - began:.0f} s", highlight=False, soft_wrap=True)


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say, once the block is done, what it was and how long it took."""
    began = time.monotonic()
    yield
    _console().print(f"{title}: {time.monotonic() - began:.1f} s", highlight=False, soft_wrap=True)


def _console() -> Console:
    return Console(stderr=True)
