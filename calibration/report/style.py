"""How every figure looks: one place for colours and sizes, so that a colour means the same thing on the whole page."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HARMLESS, HARMFUL, MUTED = "#2f6f9f", "#c8553d", "#8a8f98"
# Okabe and Ito's eight, distinguishable with every common colour blindness.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b8a800")
DASHES = ("-", "--", ":")

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "foreguard",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw within the block in the report's style."""
    with mpl.rc_context(_SETTINGS):
        yield


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of that many inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dash of the index-th line: no two of the first 24 look alike."""
    return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index // len(LINES) % len(DASHES)]}
