"""Thresholds with a promise: from benign scores to a cut that keeps its false-positive rate.

The Neyman-Pearson umbrella (arXiv 1802.02558): of N benign scores, take the lowest order statistic whose true
false-positive rate exceeds the target with probability at most `1 - confidence`, whatever the scores' distribution.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from probes.errors import CalibrationError, TooFewNegatives


@dataclass(frozen=True, slots=True)
class Threshold:
    """A certified cut: flag when `score > value`."""

    value: float
    target_fpr: float
    confidence: float
    """Probability, over draws of the benign sample, that the true false-positive rate is at most `target_fpr`."""
    num_negatives: int
    allowed_exceedances: int
    """How many of the benign scores may lie above `value`."""


def certify(benign_scores: npt.ArrayLike, target_fpr: float, confidence: float = 0.95) -> Threshold:
    """Return the lowest threshold whose false-positive rate is at most `target_fpr` with the stated confidence.

    `benign_scores` `[N]` must be drawn as the traffic is, and must not have chosen the probe. Tied scores are safe: the
    rule flags strictly above the value. Raises `TooFewNegatives`, saying how many are needed, and `CalibrationError`.
    """
    scores = np.sort(np.asarray(benign_scores, dtype=np.float64).ravel())
    if not np.isfinite(scores).all():
        raise CalibrationError(
            "a benign score is NaN or infinite",
            field="benign_scores",
            remedy="score the prompts again with a valid artifact",
        )
    allowed = allowed_exceedances(len(scores), target_fpr, confidence)
    return Threshold(
        value=float(scores[len(scores) - 1 - allowed]),
        target_fpr=target_fpr,
        confidence=confidence,
        num_negatives=len(scores),
        allowed_exceedances=allowed,
    )


def allowed_exceedances(num_negatives: int, target_fpr: float, confidence: float = 0.95) -> int:
    """Return the largest m with `P(Bin(num_negatives, target_fpr) <= m) <= 1 - confidence`.

    Raises `TooFewNegatives` when not even m = 0 qualifies.
    """
    needed = minimum_negatives(target_fpr, confidence)
    if num_negatives < needed:
        raise TooFewNegatives(
            f"{num_negatives} benign prompts cannot certify a rate of {target_fpr:g} at {confidence:.0%} confidence",
            field="target_fpr",
            remedy=f"give at least {needed} benign prompts, or ask for a higher rate or a lower confidence",
        )
    risk = 1.0 - confidence
    most = int(binom.ppf(risk, num_negatives, target_fpr))
    return most if binom.cdf(most, num_negatives, target_fpr) <= risk else most - 1


def minimum_negatives(target_fpr: float, confidence: float = 0.95) -> int:
    """Return the smallest N that certifies `target_fpr`: `(1 - target_fpr) ** N <= 1 - confidence`."""
    for name, value in (("target_fpr", target_fpr), ("confidence", confidence)):
        if not 0.0 < value < 1.0:
            raise CalibrationError(
                f"{value} is not between 0 and 1", field=name, remedy="give a proportion such as 0.01 or 0.95"
            )
    return math.ceil(math.log1p(-confidence) / math.log1p(-target_fpr))
