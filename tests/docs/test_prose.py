"""The documentation can be read beside a terminal."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LONGEST = 120


def prose(text: str) -> list[str]:
    """Return the lines of a page that are no table, no code, and not written by a program."""
    text = re.sub(r"<!-- [^\n]*written by.*?<!-- end of[^\n]*", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.split("\n") if not re.match(r" *\|", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_prose_are_short(page):
    """But for a word, a link or a command that cannot be broken."""
    lines = prose(page.read_text(encoding="utf-8"))
    long = [
        line
        for line in lines
        if len(line) > LONGEST and " " in re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", line).strip()
    ]
    assert long == []
