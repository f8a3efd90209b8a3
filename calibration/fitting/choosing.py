"""Choosing by sources that were not fitted on: which block, which position, which weights of a second stage.

A random part of the training prompts shares its sources with the rest, and on the lab gives recall 100 % to probes that
reach half of that on prompts of other wordings. So every candidate is fitted without some of the sources and judged on
those.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc, low_end_auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.recording.places import Where

_MOST_JUDGED = 3000
"""Prompts per class to choose by: the standard error of a recall is then below one point."""

Features = npt.NDArray[np.float32]
Fit = Callable[[Features, npt.NDArray[np.bool_]], Linear]


class Judged(NamedTuple):
    """How a reading fares on sources that it was not fitted on: means over the folds, with cuts set on them, too."""

    low_end: float
    """AUROC of the curve's part up to 5 % false positives: what readings are chosen by."""
    auroc: float
    recall: float
    """At 1 % false positives."""

    @property
    def evidence(self) -> dict[str, float]:
        """The numbers as a probe's manifest has them."""
        return {"selection_auroc": self.auroc, "selection_recall": self.recall, "selection_low_end": self.low_end}


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Training prompts `rows` `[N]`, and how they are divided: places in `rows` to fit on and to judge by, fold by
    fold.
    """

    training: TrainingSet
    rows: Rows
    folds: tuple[tuple[Rows, Rows], ...]
    by_source: bool
    """Whether no source is on both sides of any fold."""

    @classmethod
    def of(cls, training: TrainingSet) -> "CrossValidation":
        """Divide the training prompts, or a sample of them that memory can hold."""
        everything = training.held(np.sort(np.concatenate([training.fit, training.select])))
        sides = [training.sample(everything, harmful=label, most=_MOST_JUDGED) for label in (False, True)]
        rows = np.sort(np.concatenate(sides))
        folds = replace(training, fit=rows, select=rows[:0]).folds()
        places = tuple((np.searchsorted(rows, fold.fit), np.searchsorted(rows, fold.select)) for fold in folds)
        return cls(training, rows, places, all(fold.is_by_source for fold in folds))

    @property
    def harmful(self) -> npt.NDArray[np.bool_]:
        """Labels `[N]`."""
        return self.training.harmful[self.rows]

    def logits(self, fit: Fit, layer: int, where: Where) -> npt.NDArray[np.float64]:
        """Return each prompt's logit `[N]` by the reading that was fitted without its fold; NaN for prompts in none."""
        features, harmful = self.training.features(layer, where, self.rows), self.harmful
        logits = np.full(len(self.rows), np.nan)
        for fitted, judged in self.folds:
            logits[judged] = fit(features[fitted], harmful[fitted])(features[judged])
        return logits

    def judge(self, logits: npt.NDArray[np.float64]) -> Judged:
        """Return how the reading fares that gave these logits."""
        harmful = self.harmful
        sides = [(logits[judged][harmful[judged]], logits[judged][~harmful[judged]]) for _, judged in self.folds]
        numbers = [(low_end_auroc(*each), auroc(*each), recall_at(*each, 0.01)) for each in sides]
        return Judged(*np.mean(numbers, axis=0).tolist())
