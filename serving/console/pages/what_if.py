"""The page What if: what another threshold would have done to the last decisions, before it is in force."""

from collections.abc import Sequence

import numpy as np
from nicegui import ui

from guard.store.reader import Reader, Record
from guard.tuning.judged import Rules, columns_for
from guard.tuning.recent import Recent, recent
from guard.tuning.what_if import WhatIf
from guard.tuning.what_if import what_if as judged_anew
from serving.console.frame import in_thread, nothing_yet, paragraph, stored
from serving.console.pages.what_if_result import LISTED, show
from serving.console.pages.what_if_target import RateForThreshold
from serving.console.source import RECENT, Source

_STEPS = 400
"""Of the slider, from the lowest score to the highest."""
_SAME = 1e-4
"""What the number field rounds away."""


async def what_if(source: Source) -> None:
    """Show a slider for a rule's threshold, and what moving it would have changed."""
    bound = (await in_thread(source.rollout)).base.model
    found = await stored(source, lambda: recent(source.store, RECENT))
    rules, thresholds = Rules.of(bound), bound.thresholds
    names = {rule.name for rule in rules.rules}
    places = [place for place in thresholds if place[0] in names]
    if not len(found) or not places:
        nothing_yet(
            "No decisions yet, or no rule with a threshold. Send requests to the server, in shadow mode if need be."
        )
        return
    paragraph(f"Computed from the scores of the last {len(found):,} decisions. Nothing is changed here.")
    page = _Page(source, found, rules, thresholds)
    await page.build(places)
    RateForThreshold(lambda: (page.score, found, page.column), page.move).build()


class _Page:
    """The controls, and below them what they ask about."""

    def __init__(self, source: Source, found: Recent, rules: Rules, thresholds: dict[tuple[str, str], float]) -> None:
        self._source, self._found, self._rules, self._thresholds = source, found, rules, thresholds
        self._rule, self.score, self._above = "", "", 0.0

    @property
    def column(self) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """The score `[N]` that the threshold is of, of all decisions."""
        return columns_for(self._found, self._rules)[self.score]

    async def build(self, places: Sequence[tuple[str, str]]) -> None:
        """Show the controls and the first answer."""
        options = {f"{rule} · {score}": (rule, score) for rule, score in places}
        self._rule, self.score = places[0]
        self._above = self._thresholds[self._rule, self.score]
        with ui.element("div").classes("side items-end"):
            chosen = ui.select(list(options), value=next(iter(options)), label="Rule and score")
            self._number = ui.number("Threshold", value=round(self._above, 4), step=0.05, format="%.4f")
        self._slider = ui.slider(min=0, max=1, step=0.001, value=self._above).props('aria-label="Threshold"')
        self._bounds()
        self._area = ui.column().classes("w-full").props('aria-live="polite"')

        async def pick() -> None:
            self._rule, self.score = options[str(chosen.value)]
            self._bounds()
            await self.move(self._thresholds[self._rule, self.score])

        chosen.on_value_change(pick)
        self._slider.on_value_change(lambda event: self.move(event.value))
        self._number.on_value_change(lambda event: self.move(event.value))
        await self._answer()

    async def move(self, above: float | None) -> None:
        """Ask about another threshold."""
        if above is None or abs(above - self._above) < _SAME:
            return
        self._above = float(above)
        self._slider.set_value(self._above)
        self._number.set_value(round(self._above, 4))
        await self._answer()

    def _bounds(self) -> None:
        above, column = self._thresholds[self._rule, self.score], self.column
        finite = np.append(column[np.isfinite(column)], [above - 1, above + 1])
        low, high = float(finite.min()), float(finite.max())
        self._slider.props(f"min={low} max={high} step={(high - low) / _STEPS}")

    async def _answer(self) -> None:
        """Compute first, and only then exchange what is shown; an answer that comes late is left out."""
        asked = self._rule, self.score, self._above
        found, records = await in_thread(lambda: self._asked(*asked))
        if asked != (self._rule, self.score, self._above):
            return
        self._area.clear()
        with self._area:
            show(found, records)
            if self._source.desk is not None:
                ui.button("Take this threshold to the policy", on_click=self._propose).props("no-caps")

    def _asked(self, rule: str, score: str, above: float) -> tuple[WhatIf, list[Record]]:
        found = judged_anew(self._found, self._rules, self._rules.moved(rule, score, above))
        keys = found.changes.keys[:LISTED].tolist()
        store = self._source.store
        return found, self._source.read(lambda: Reader(store).at(keys)) if keys else []

    def _propose(self) -> None:
        ui.navigate.to(f"/policy?rule={self._rule}&score={self.score}&above={self._above!r}")
