"""Thresholds with a promise: from benign scores to a cut that keeps its false-positive rate.

The Neyman-Pearson umbrella (arXiv 1802.02558): of N benign scores, take the lowest order statistic whose true
false-positive rate exceeds the target with probability at most `1 - confidence`, whatever the scores' distribution.
"""

import math
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class StratifiedThreshold:
    """One cut that keeps the rate in every stratum of the traffic that the sample can speak of."""

    threshold: Threshold
    """The highest of the strata's, with their target and the confidence that *all* of them keep it."""
    strata: dict[str, Threshold]
    too_small: dict[str, int]
    """Strata with fewer benign prompts than `needed`, by their number: nothing is promised of them."""
    needed: int


def certify_strata(
    benign_scores: npt.ArrayLike, strata: npt.ArrayLike, target_fpr: float, confidence: float = 0.95
) -> StratifiedThreshold:
    """Return the lowest cut that keeps `target_fpr` in every stratum at once with the stated confidence.

    `benign_scores` `[N]` and the `strata` `[N]` they belong to. Each stratum is certified at confidence
    `1 - (1 - confidence) / S`, so that all S keep the rate together (Bonferroni). A stratum that is too small for that
    is left out and named. Raises `TooFewNegatives` when every stratum is.
    """
    scores, labels = np.asarray(benign_scores, dtype=np.float64).ravel(), np.asarray(strata).ravel().astype(str)
    if len(scores) != len(labels):
        raise CalibrationError(
            f"{len(labels)} strata for {len(scores)} benign scores", field="strata", remedy="give one for each score"
        )
    sizes = {name: int((labels == name).sum()) for name in np.unique(labels).tolist()}
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    # Every further stratum asks more of each: as many as the smallest of them can bear.
    enough = [
        count
        for count, name in enumerate(largest_first, start=1)
        if sizes[name] >= minimum_negatives(target_fpr, share_confidence(confidence, count))
    ]
    counted = largest_first[: max(enough, default=1)]
    each = share_confidence(confidence, len(counted))
    certified = {name: certify(scores[labels == name], target_fpr, each) for name in counted}
    highest = max(certified.values(), key=lambda threshold: threshold.value)
    return StratifiedThreshold(
        threshold=replace(highest, confidence=confidence),
        strata=certified,
        too_small={name: size for name, size in sizes.items() if name not in counted},
        needed=minimum_negatives(target_fpr, each),
    )


@dataclass(frozen=True, slots=True)
class CertifiedBand:
    """Two cuts of one score that keep their rates together: what lies above `flag` and not above `block` is the
    band.
    """

    flag: StratifiedThreshold
    block: StratifiedThreshold
    confidence: float
    """Probability that both cuts keep their rates, in every stratum that each can speak of."""


def certify_band(
    benign_scores: npt.ArrayLike,
    strata: npt.ArrayLike,
    block_fpr: float,
    flag_fpr: float,
    confidence: float = 0.95,
) -> CertifiedBand:
    """Return the lowest two cuts such that at most `block_fpr` of benign traffic is above one and `flag_fpr` above the
    other.

    Both hold at once with the stated confidence: each is certified at `1 - (1 - confidence) / 2` (Bonferroni), so 0.1 %
    takes 3,688 benign prompts and not 2,995. The cut for blocking is never below the other. Raises `TooFewNegatives`,
    and `CalibrationError` unless `block_fpr < flag_fpr`.
    """
    if block_fpr >= flag_fpr:
        raise CalibrationError(
            f"{block_fpr:g} of requests to block is not less than {flag_fpr:g} to flag or block",
            field="block_fpr",
            remedy="give a lower rate for blocking than for flagging: whatever is blocked counts as flagged too",
        )
    each = share_confidence(confidence, 2)
    block = certify_strata(benign_scores, strata, block_fpr, each)
    flag = certify_strata(benign_scores, strata, flag_fpr, each)
    if flag.threshold.value > block.threshold.value:
        # A stratum large enough for the flag's rate and too small for the block's can score above all others.
        block = replace(block, threshold=replace(block.threshold, value=flag.threshold.value))
    return CertifiedBand(flag, block, confidence)


def share_confidence(confidence: float, count: int) -> float:
    """Return the confidence that each of `count` promises needs so that all hold together with `confidence`."""
    return confidence if count == 1 else 1.0 - (1.0 - confidence) / count


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
