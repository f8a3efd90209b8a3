"""A statement takes only so many values: longer lists go in parts."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

_AT_ONCE = 500
Item = TypeVar("Item")


def parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield items in parts that a statement may have as its values."""
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
