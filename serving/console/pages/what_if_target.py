"""The other way round on the page What if: from a false-positive rate to a threshold, with what it rests on."""

from collections.abc import Awaitable, Callable

import numpy as np
from nicegui import ui

from guard.tuning.recent import Recent
from guard.tuning.target import Target, target
from probes.errors import CalibrationError
from serving.console.frame import heading, in_thread, paragraph

Column = np.ndarray[tuple[int], np.dtype[np.float64]]
Asked = Callable[[], tuple[str, Recent, Column]]


class RateForThreshold:
    """A form: a rate and a confidence, and the threshold that keeps them."""

    def __init__(self, asked: Asked, move: Callable[[float], Awaitable[None]]) -> None:
        """`asked` returns the score's name, the decisions, and their scores; `move` asks about a threshold."""
        self._asked, self._move = asked, move

    def build(self) -> None:
        """Show the form."""
        heading("A threshold for a rate")
        paragraph("Type a false-positive rate that you can live with, on traffic like that which is labelled.")
        with ui.row().classes("items-end"):
            self._rate = ui.number("False-positive rate, %", value=1.0, min=0.001, max=50, step=0.1)
            self._rate.style("min-width:11rem")
            self._confidence = ui.number("Confidence, %", value=95, min=50, max=99.9, step=1)
            self._confidence.style("min-width:8rem")
            ui.button("Find the threshold", on_click=self._find).props("no-caps")
        self._area = ui.column().props('aria-live="polite"')

    async def _find(self) -> None:
        name, found, column = self._asked()
        rate, confidence = (self._rate.value or 0) / 100, (self._confidence.value or 0) / 100
        self._area.clear()
        with self._area:
            try:
                answer = await in_thread(lambda: target(found, column, rate, confidence))
            except CalibrationError as error:
                paragraph(f"{error.problem}. {error.remedy}.", "alarm")
                return
            self._show(name, answer)

    def _show(self, name: str, found: Target) -> None:
        if found.certified is not None:
            paragraph(
                f"{name} above {found.certified.value:.4f} keeps {found.target_fpr:.3%} with {found.confidence:.1%} "
                f"confidence: certified by {found.even:,} benign labels."
            )
            self._try(found.certified.value)
            return
        paragraph(
            f"Not certified: {found.missing:,} more benign labels are needed "
            f"({found.even:,} of {found.needed:,} are there)."
        )
        if np.isfinite(found.bounded):
            paragraph(
                f"Without labels: at most {found.target_fpr:.3%} of all {found.traffic:,} decisions are above "
                f"{found.bounded:.4f}. That is a bound on this sample, and no promise."
            )
            self._try(found.bounded)

    def _try(self, above: float) -> None:
        ui.button("Try it above", on_click=lambda: self._move(above)).props("no-caps")
