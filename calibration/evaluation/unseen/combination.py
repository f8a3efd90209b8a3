"""Combinations: which probes are worth more together, judged on sources that neither they nor the choice has seen.

A combination is a weighted sum of log-odds. Candidates are the plain averages of up to three probes, and logistic
stacking of all of them. Errors of probes that read different places are less alike, so that averages of few tend to win
(arXiv 2601.04603); which, the folds say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from calibration.fitting.logit_scale import apply, fit_maps, logit_maps
from calibration.fitting.metrics import cut_at

_MOST_TOGETHER = 3

Scores = npt.NDArray[np.floating]
Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FoldScores:
    """Scores `[., K]` of K probes that were fitted without one family of sources."""

    judged: Scores
    """Of prompts of the other families that took no part in fitting, with labels `judged_harmful`."""
    judged_harmful: npt.NDArray[np.bool_]
    left_out: Scores
    """Of the family's own prompts, with labels `harmful`."""
    harmful: npt.NDArray[np.bool_]

    def in_logits(self) -> "FoldScores":
        """Return the same in log-odds, by maps fitted on the judged prompts."""
        maps = logit_maps(fit_maps(self.judged.astype(np.float32), self.judged_harmful))
        judged, left_out = (apply(maps, each.astype(np.float32)) for each in (self.judged, self.left_out))
        return FoldScores(judged, self.judged_harmful, left_out, self.harmful)

    def combined(self, weights: npt.NDArray[np.float64]) -> "FoldScores":
        """Return the scores `[., 1]` of one weighted sum, weights `[K]`."""
        column = weights[:, None]
        return FoldScores(self.judged @ column, self.judged_harmful, self.left_out @ column, self.harmful)

    def merit(self, target_fpr: float) -> float:
        """Return recall on the family's harmful prompts less the share of its harmless ones flagged; one column only.

        Both at the cut of the judged harmless prompts. A family that lacks a class has only the other share.
        """
        cut = cut_at(self.judged[~self.judged_harmful, 0], target_fpr)
        above = self.left_out[:, 0] > cut
        return sum(
            sign * float(above[side].mean()) for sign, side in ((1, self.harmful), (-1, ~self.harmful)) if side.any()
        )


def choose_combination(
    folds: Sequence[FoldScores], names: Sequence[str], target_fpr: float, default: Weights = MappingProxyType({})
) -> dict[str, float]:
    """Return the weights by name, in sum 1, that are best over families left out; fewer probes among equals.

    Best is the greatest sum of recalls on their harmful prompts less the shares of their harmless ones flagged: what a
    probe takes for harm in one kind of honest traffic counts as much as what it misses in one kind of attack.

    Where there is a `default`, it stays unless another is better by a paired t-test over the families (one-sided, 95
    %): the best of hundreds over a dozen families is mostly luck.

    `folds` are in log-odds, columns as `names`.
    """
    candidates = np.array(_candidates(folds, len(names)))
    merits = _merits(folds, candidates, target_fpr)
    if default:
        own = _merits(folds, np.array([[default.get(name, 0.0) for name in names]]), target_fpr)
        proven = _gain_at_least(merits - own) > 0
        if not proven.any():
            return dict(default)
        candidates, merits = candidates[proven], merits[proven]
    best = max(zip(merits.mean(axis=1), -np.count_nonzero(candidates, axis=1), range(len(merits)), strict=True))[2]
    return {name: float(share) for name, share in zip(names, candidates[best], strict=True) if share}


def _merits(
    folds: Sequence[FoldScores], candidates: npt.NDArray[np.float64], target_fpr: float
) -> npt.NDArray[np.float64]:
    """Return the merit `[C, F]` of each candidate, a row of weights, in each fold."""
    return np.array([[fold.combined(each).merit(target_fpr) for fold in folds] for each in candidates])


def _gain_at_least(gains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the lower ends `[C]` of one-sided 95 % intervals of the mean gain, from gains `[C, F]` in families."""
    count = gains.shape[1]
    if count < 2:
        return np.full(len(gains), -np.inf)
    ends: npt.NDArray[np.float64] = gains.mean(axis=1) - t.ppf(0.95, count - 1) * gains.std(axis=1, ddof=1) / count**0.5
    return ends


def _candidates(folds: Sequence[FoldScores], count: int) -> list[npt.NDArray[np.float64]]:
    averages = []
    for size in range(1, min(_MOST_TOGETHER, count) + 1):
        for members in combinations(range(count), size):
            weights = np.zeros(count)
            weights[list(members)] = 1 / size
            averages.append(weights)
    return [*averages, stacking_weights(folds)]


def stacking_weights(folds: Sequence[FoldScores]) -> npt.NDArray[np.float64]:
    """Return weights `[K]`, none negative and in sum 1, of a logistic regression on the judged prompts of all folds.

    A negative weight would let a request pass because one probe is sure of its harm; it becomes zero.
    """
    scores = np.concatenate([fold.judged for fold in folds])
    harmful = np.concatenate([fold.judged_harmful for fold in folds])
    fitted = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000).fit(scores, harmful)
    weights = np.maximum(fitted.coef_[0], 0)
    return np.asarray(weights / weights.sum()) if weights.any() else np.full(len(weights), 1 / len(weights))
