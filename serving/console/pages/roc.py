"""The page ROC: what each score is worth on an operator's own labels."""

import numpy as np

from guard.tuning.judged import Rules, columns_for
from guard.tuning.recent import recent
from guard.tuning.roc import Roc
from guard.tuning.roc import roc as curve
from serving.console.charts import Options, axis, chart
from serving.console.frame import heading, in_thread, nothing_yet, paragraph, stored, table
from serving.console.source import RECENT, Source

_RATES = (0.001, 0.01, 0.05)
"""False-positive rates that are shown, as far as there are labels enough for one of them to be above a cut."""


async def roc(source: Source) -> None:
    """Show a curve for each score that a rule reads."""
    bound = (await in_thread(source.rollout)).base.model
    found = await stored(source, lambda: recent(source.store, RECENT))
    columns = columns_for(found, Rules.of(bound))
    names = dict.fromkeys(score for _, score in bound.thresholds if score in columns)

    def computed() -> dict[str, Roc]:
        curves = {name: curve(found, columns[name]) or curve(found, columns[name], known=False) for name in names}
        return {name: each for name, each in curves.items() if each is not None}

    curves = await in_thread(computed)
    if not curves:
        nothing_yet(
            "A curve needs benign and harmful labels. Give some on the page Review, or by event id from outside."
        )
        return
    paragraph("Recall against the false-positive rate, on a logarithmic axis: guards work at its left end.")
    for name, each in curves.items():
        heading(name)
        if not each.is_weighted:
            paragraph(
                "How these labels were picked is not known: the curve is one of the labels, not of traffic.", "note"
            )
        chart(
            f"ROC curve of {name}: AUROC {each.auroc:.3f}, of {each.num_benign} benign and {each.num_harmful} labels.",
            _options(each),
        )
        rows = [(f"{rate:.1%}", f"{_recall(each, rate):.1%}") for rate in _RATES if rate * each.num_benign >= 1]
        table(
            f"AUROC {each.auroc:.3f}, of {each.num_benign:,} benign and {each.num_harmful:,} harmful labels",
            ("false-positive rate", "recall"),
            rows,
        )


def _recall(found: Roc, rate: float) -> float:
    return float(found.tpr[found.fpr <= rate].max(initial=0.0))


def _options(found: Roc) -> Options:
    least = 1 / found.num_benign
    shares = np.maximum(found.fpr, least).round(6).tolist()

    def line(name: str, values: "np.ndarray[tuple[int], np.dtype[np.float64]]", **more: object) -> Options:
        data = [[x, round(y, 4)] for x, y in zip(shares, values.tolist(), strict=True)]
        return {"name": name, "type": "line", "step": "end", "showSymbol": False, "data": data, **more}

    series = [line("recall", found.tpr, color="#2f6db5")]
    if found.tpr_low is not None and found.tpr_high is not None:
        dashed = {"lineStyle": {"type": "dashed", "width": 1}, "color": "#888"}
        series += [line("95 % low", found.tpr_low, **dashed), line("95 % high", found.tpr_high, **dashed)]
    return {
        "xAxis": axis("log", "false-positive rate", min=least, max=1, below=True),
        "yAxis": axis("value", "recall", min=0, max=1),
        "series": series,
        "grid": {"left": 8, "right": 16, "top": 40, "bottom": 30, "containLabel": True},
    }
