"""A document with a part that a program writes, between two markers."""

from pathlib import Path


def write_between(document: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between the markers `begin` and `end`. Raises `ValueError` where `document` has them not."""
    head, has_begin, rest = document.read_text().partition(begin)
    _, has_end, foot = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"{document} lacks the markers {begin!r} and {end!r}")
    document.write_text(f"{head}{begin}\n\n{text}\n\n{end}{foot}")
