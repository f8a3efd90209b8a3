"""The page Scores: each probe's scores in own traffic over calibration's benign and harmful prompts."""

import numpy as np

from guard.rollout import Rollout
from guard.tuning.curves import Curves, calibration_columns, curves
from guard.tuning.judged import Rules, columns_for
from guard.tuning.recent import Recent, recent
from serving.console.charts import Options, axis, chart
from serving.console.frame import heading, in_thread, nothing_yet, paragraph, stored
from serving.console.source import RECENT, Source


async def scores(source: Source) -> None:
    """Show a histogram for each score that a rule reads, and then for the others."""
    rollout = await in_thread(source.rollout)
    found = await stored(source, lambda: recent(source.store, RECENT))
    if not len(found):
        nothing_yet("No decisions yet. Send requests to the server, in shadow mode if need be, and come back.")
        return
    paragraph(
        f"The last {len(found):,} decisions over calibration's prompts. Where your traffic lies right of the benign "
        "curve, a threshold that calibration certified flags more of it than was promised."
    )
    for name in _names(rollout, found):
        await _score(source, rollout, found, name)


def _names(rollout: Rollout, found: Recent) -> list[str]:
    read = dict.fromkeys(score for _, score in rollout.base.model.thresholds)
    return [*read, *(name for name in found.columns if name not in read)]


async def _score(source: Source, rollout: Rollout, found: Recent, name: str) -> None:
    bound = rollout.base.model

    def computed() -> Curves | None:
        assert source.artifact is not None  # noqa: S101 - the rollout is bound to it
        benign, harmful = calibration_columns(source.artifact, bound.policy)
        own = columns_for(found, Rules.of(bound)).get(name, found.columns.get(name))
        nothing = np.empty(0)
        return None if own is None else curves(own, benign.get(name, nothing), harmful.get(name, nothing))

    drawn = await in_thread(computed)
    if drawn is None:
        return
    cuts = {rule: value for (rule, score), value in bound.thresholds.items() if score == name}
    heading(name)
    chart(_told(name, drawn, cuts), _options(drawn, cuts))


def _told(name: str, drawn: Curves, cuts: dict[str, float]) -> str:
    middle = (drawn.edges[:-1] + drawn.edges[1:]) / 2
    own = float(np.average(middle, weights=drawn.own)) if drawn.own.sum() else float("nan")
    parts = [f"Histogram of {name}: own traffic has a mean of {own:.2f}"]
    for what, shares in (("benign", drawn.benign), ("harmful", drawn.harmful)):
        if shares.any():
            parts.append(f"calibration's {what} prompts {float(np.average(middle, weights=shares)):.2f}")
    above = [f"{rule} above {cut:.2f}" for rule, cut in cuts.items()]
    return ", ".join(parts) + (f"; thresholds: {', '.join(above)}." if above else ".")


def _options(drawn: Curves, cuts: dict[str, float]) -> Options:
    middle = ((drawn.edges[:-1] + drawn.edges[1:]) / 2).round(3).tolist()

    def pairs(shares: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[list[float]]:
        return [[at, round(100 * share, 3)] for at, share in zip(middle, shares.tolist(), strict=True)]

    marks = [{"xAxis": round(cut, 4), "name": rule} for rule, cut in cuts.items() if np.isfinite(cut)]
    line = {"type": "line", "showSymbol": False, "smooth": False}
    own = {
        "name": "your traffic",
        "type": "bar",
        "data": pairs(drawn.own_shares),
        "barWidth": "90%",
        "itemStyle": {"color": "#5b8fd0"},
        "markLine": {
            "symbol": "none",
            "data": marks,
            "label": {"formatter": "{b}", "color": "currentColor", "position": "insideEndTop"},
            "lineStyle": {"color": "currentColor"},
        },
    }
    return {
        "xAxis": axis("value", "score", below=True, scale=True),
        "yAxis": axis("value", "% of prompts"),
        "series": [
            own,
            {"name": "calibration, benign", "data": pairs(drawn.benign), "color": "#4c9f70", **line},
            {"name": "calibration, harmful", "data": pairs(drawn.harmful), "color": "#cf3f3f", **line},
        ],
        "grid": {"left": 8, "right": 16, "top": 56, "bottom": 30, "containLabel": True},
    }
