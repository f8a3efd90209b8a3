"""The console that commands print their tables on."""

import os
import sys

from rich.console import Console

_WIDTH = 160
"""Columns where neither a terminal nor COLUMNS says how many: rich would take 80, and cut numbers off."""


def table_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error, that is wide enough for tables."""
    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if known else _WIDTH)
