"""Studies: what a method or a diagnostic found out beyond its probes, as data that a page can draw and a person can
read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from calibration.recording.stage_file import Strict
from probes.errors import ModelError


class Series(Strict):
    """One line of a chart."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    """Lower and upper ends of the 95 % intervals of `y`, where they were measured."""
    high: tuple[float, ...] | None = None


class Chart(Strict):
    """Lines over one axis."""

    name: str
    """Unique in its study, fit for a file name."""
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    scatter: bool = False
    """Points only: the order of a series' points means nothing."""


class Table(Strict):
    """Rows of text and numbers under a head."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int, ...], ...]


class StudyResult(Strict):
    """One question put to the model, and its answer."""

    name: str
    """Unique in the evidence, fit for a file name."""
    title: str
    finding: str
    """The answer in plain words, with numbers and sample sizes, whether it is the one hoped for or not."""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()


class Skipped(Exception):
    """A study that cannot be asked of this model or of these prompts. The report gives its name and the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def required_of_the_model() -> Iterator[None]:
    """Within the block, what the model does not have (`ModelError`) is the reason why a study cannot be asked."""
    try:
        yield
    except ModelError as error:
        raise Skipped(error.problem) from error
