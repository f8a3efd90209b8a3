"""The ROC curve of one score on an operator's own labels, and the area under it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.store.label import Label
from guard.tuning.estimates import Estimate, share
from guard.tuning.even import levelled
from guard.tuning.recent import Recent

Floats = npt.NDArray[np.float64]
_FEWEST = 10
"""Labels of a kind below which an interval would be nearly all of 0 to 1: no band is drawn."""
_POINTS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """A curve of P thresholds, from the highest down, so that both rates rise."""

    thresholds: Floats
    """`[P]`; what is strictly above is stopped. Nothing is above the first, and everything above the last."""
    fpr: Floats
    """`[P]`, of benign labels. It begins at 0, which a logarithmic axis cannot show: draw from `1 / num_benign` on."""
    tpr: Floats
    """`[P]`, of harmful labels."""
    tpr_low: Floats | None
    """`[P]`: lower end of the recall at each threshold, pointwise: each holds with the confidence, not all at once.
    None where one kind has fewer than 10 labels.
    """
    tpr_high: Floats | None
    """`[P]`."""
    auroc: float
    """Weighted as the labels are; ties count half."""
    num_benign: int
    num_harmful: int
    confidence: float
    is_weighted: bool
    """Whether labels count by 1 / chance. Where chances are not known, all count alike, and the curve is one of the
    labels and not of traffic.
    """


def roc(recent: Recent, scores: Floats, confidence: float = 0.95, *, known: bool = True) -> Roc | None:
    """Return the curve of `scores` `[N]`, which are those of the decisions in `recent`; None where a kind has no label.

    Of the labels it takes those with a known chance, or else only those without one: the two are not mixed. A decision
    whose score is no finite number, and one about an answer, has no part. Thresholds are thinned to about 200.
    """
    has_chance = np.isfinite(recent.chances)
    rows = np.isfinite(scores) & (recent.judged != "answer") & (has_chance if known else ~has_chance)
    benign, harmful = rows & (recent.labels == Label.BENIGN), rows & (recent.labels == Label.HARMFUL)
    if not benign.any() or not harmful.any():
        return None
    chances = levelled(np.where(benign | harmful, recent.chances, np.nan), recent.sources)
    chances = np.where(np.isfinite(chances), chances, 1.0)
    thresholds = _thresholds(scores[benign], scores[harmful])
    fpr, tpr = (_above(scores[side], 1 / chances[side], thresholds) for side in (benign, harmful))
    band = None
    if min(np.count_nonzero(benign), np.count_nonzero(harmful)) >= _FEWEST:
        heaviest = float(1 / chances[benign | harmful].min())
        band = [_at(scores[harmful], chances[harmful], cut, confidence, heaviest) for cut in thresholds.tolist()]
    return Roc(
        thresholds=thresholds,
        fpr=fpr,
        tpr=tpr,
        tpr_low=None if band is None else np.array([each.low for each in band]),
        tpr_high=None if band is None else np.array([each.high for each in band]),
        auroc=auroc(scores[benign], scores[harmful], 1 / chances[benign], 1 / chances[harmful]),
        num_benign=int(np.count_nonzero(benign)),
        num_harmful=int(np.count_nonzero(harmful)),
        confidence=confidence,
        is_weighted=known,
    )


def auroc(benign: Floats, harmful: Floats, benign_weights: Floats, harmful_weights: Floats) -> float:
    """Return the weighted share of pairs `[n] x [m]` in which the harmful score is the higher one; ties count half."""
    order = np.argsort(benign, kind="stable")
    ascending, below = benign[order], np.concatenate([[0.0], np.cumsum(benign_weights[order])])
    lower = below[np.searchsorted(ascending, harmful, "left")]
    up_to = below[np.searchsorted(ascending, harmful, "right")]
    return float(np.average((lower + up_to) / 2, weights=harmful_weights) / below[-1])


def _thresholds(benign: Floats, harmful: Floats) -> Floats:
    """Return cuts from the highest down: all of few scores, and of many those at evenly spread places on a log axis."""
    cuts = np.unique(np.concatenate([benign, harmful]))[::-1]
    if len(cuts) > _POINTS:
        order = np.sort(benign)[::-1]
        rates = np.unique(np.geomspace(1, len(order), _POINTS // 2).astype(int)) - 1
        places = np.unique(np.linspace(0, len(harmful) - 1, _POINTS // 2).astype(int))
        cuts = np.unique(np.concatenate([order[rates], np.sort(harmful)[places], cuts[[0, -1]]]))[::-1]
    return np.append(cuts, np.nextafter(cuts[-1], -np.inf))


def _above(scores: Floats, weights: Floats, thresholds: Floats) -> Floats:
    """Return the weighted share of scores strictly above each threshold."""
    order = np.argsort(scores, kind="stable")
    up_to = np.concatenate([[0.0], np.cumsum(weights[order])])
    return np.asarray((up_to[-1] - up_to[np.searchsorted(scores[order], thresholds, "right")]) / up_to[-1])


def _at(scores: Floats, chances: Floats, cut: float, confidence: float, heaviest: float) -> Estimate:
    found = share(scores > cut, chances, confidence, heaviest=heaviest)
    assert found is not None  # noqa: S101 - there are labels of both kinds
    return found
