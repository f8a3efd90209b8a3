"""Tables keep their numbers where nobody looks at a terminal."""

import io
import sys

from guard.console import table_console


def test_without_a_terminal_a_table_has_room(monkeypatch):
    """Piped output is wider than rich's 80 columns; COLUMNS says otherwise where somebody set it."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table_console().width > 120
    monkeypatch.setenv("COLUMNS", "70")
    assert table_console().width == 70
