"""The starter set's table as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, precision_recall_curve

from benchmarks.detection.public_sets import REAL
from calibration.fitting.metrics import auroc, cut_at, rate

_TARGET = 0.01

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Met:
    """What each column gave the prompts of one label of one set, and real users' harmless prompts."""

    source: str
    is_harmful: bool
    scores: dict[str, Scores]
    real: dict[str, Scores]

    @property
    def count(self) -> int:
        """How many prompts they are."""
        return len(next(iter(self.scores.values())))

    def above(self, column: str) -> float:
        """Return the share above the cut that 1 % of real users' harmless prompts pass."""
        return float((self.scores[column] > cut_at(self.real[column], _TARGET)).mean())

    def area(self, column: str) -> float:
        """Return the AUROC against real users' harmless prompts."""
        return auroc(self.scores[column], self.real[column])


def table(columns: Sequence[str], met: Sequence[Met]) -> str:
    """Return the tables: shares above the cut of harmful and of harmless prompts, AUROC, and real users' traffic."""
    harmful, harmless = ([each for each in met if each.is_harmful == label] for label in (True, False))
    sections = [
        "### Recall at the cut that 1 % of real users' harmless prompts pass",
        _rows(columns, harmful, Met.above, _interval),
        "### Share of harmless prompts above the same cut",
        _rows(columns, harmless, Met.above, _interval),
        "### AUROC against real users' harmless prompts",
        _rows(columns, harmful, Met.area, lambda value, _: f"{value:.3f}"),
        "### Real users' traffic",
        _lines(["measure", *columns], _real(columns, met)),
    ]
    return "\n\n".join(sections) + "\n"


def _interval(share: float, count: int) -> str:
    """Return a share with its 95 % interval."""
    found = rate(round(share * count), count)
    return f"{share:.0%} ({found.low:.0%} to {found.high:.0%})"


def _rows(
    columns: Sequence[str],
    met: Sequence[Met],
    measure: Callable[[Met, str], float],
    shown: Callable[[float, int], str],
) -> str:
    rows = [[each.source, str(each.count), *(shown(measure(each, c), each.count) for c in columns)] for each in met]
    means = [np.mean([measure(each, column) for each in met]) for column in columns]
    rows.append(["mean of sets", str(len(met)), *(f"**{mean:.3f}**" for mean in means)])
    return _lines(["set", "n", *columns], rows)


def _real(columns: Sequence[str], met: Sequence[Met]) -> list[list[str]]:
    """Return AUROC, average precision and the best F1 of real users' toxic prompts among their harmless ones."""
    toxic = next((each for each in met if each.is_harmful and each.source == REAL), None)
    if toxic is None:
        return []
    labels = {c: np.repeat([True, False], [toxic.count, len(toxic.real[c])]) for c in columns}
    scores = {c: np.concatenate([toxic.scores[c], toxic.real[c]]) for c in columns}
    return [
        ["AUROC", *(f"{toxic.area(c):.3f}" for c in columns)],
        ["average precision", *(f"{average_precision_score(labels[c], scores[c]):.3f}" for c in columns)],
        ["best F1 of any cut", *(f"{_best_f1(labels[c], scores[c]):.3f}" for c in columns)],
        ["toxic, harmless", *(f"{toxic.count}, {len(toxic.real[c])}" for c in columns)],
    ]


def _best_f1(labels: npt.NDArray[np.bool_], scores: Scores) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-9)).max())


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
