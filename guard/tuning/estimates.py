"""Shares of an operator's traffic from labels, corrected for how the labelled decisions were picked.

A label whose decision was picked with probability c stands for 1 / c decisions. A share is then the ratio of two such
sums (Hájek 1971, "Comment on An essay on the logical foundations of survey sampling"; Särndal, Swensson and Wretman
1992, *Model Assisted Survey Sampling*, 5.7), so that chances need to be known up to one common factor only.

The interval is Clopper and Pearson's (1934) where all chances are equal. Where they are not, it is the same one with
moments: Clopper-Pearson's upper end is a quantile of the beta distribution that one more hit would lead to, and the
lower end of one more miss. The hit, or miss, that is added has the greatest weight of all labels, and the beta
distribution has the mean and the variance of the ratio with it. That is what Fay and Feuer (1997, "Confidence
intervals for directly standardized rates") do with the gamma distribution for weighted sums of Poisson counts.
`docs/decisions.md` has its measured coverage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from guard.store.label import Label
from guard.tuning.even import levelled
from guard.tuning.recent import Recent

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share of traffic, and its interval."""

    value: float
    low: float
    high: float
    count: int
    """Labels that it is made from."""
    hits: int
    """How many of them are hits, unweighted."""
    confidence: float
    is_even: bool
    """Whether all had the same chance: the interval is then exact."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """The same share from two kinds of labels, which are never mixed."""

    known: Estimate | None
    """From labels with a known chance: of traffic. None without any."""
    unknown: Estimate | None
    """From labels without one, as if they had been picked evenly, which nobody promises. None without any."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What labels say of the decisions that some rules stop."""

    fpr: Estimated
    """Share of benign traffic that is stopped."""
    recall: Estimated
    """Share of harmful traffic that is stopped."""
    precision: Estimated
    """Share of what is stopped that is harmful."""
    prevalence: Estimated
    """Share of traffic that is harmful."""
    labels: Mapping[Label, int]
    """How many labels there are of each kind, among the decisions that count. Unsure ones are part of no share."""


def share(hits: Bools, chances: Floats, confidence: float = 0.95, *, heaviest: float | None = None) -> Estimate | None:
    """Return the share of hits in what `n` labels stand for; None where n is 0.

    `hits` `[n]`, and the `chances` `[n]` with which each was picked, all known. `heaviest` is the greatest weight
    1 / chance that any decision could have; without it, the greatest of these.
    """
    if not len(hits):
        return None
    weights = 1.0 / chances
    top = max(float(weights.max()), heaviest or 0.0)
    is_even = bool(np.ptp(chances) <= 1e-12 * chances.max()) and top <= weights[0] * (1 + 1e-9)
    tail = (1.0 - confidence) / 2
    value = float(np.average(hits, weights=weights))
    return Estimate(
        value=value,
        low=min(1.0 - _upper(~hits, weights, top, tail), value),
        high=max(_upper(hits, weights, top, tail), value),
        count=len(hits),
        hits=int(np.count_nonzero(hits)),
        confidence=confidence,
        is_even=is_even,
    )


def estimated(hits: Bools, chances: Floats, confidence: float = 0.95) -> Estimated:
    """Return the share of hits `[n]` from labels with known `chances` `[n]`, and apart from it that of those with NaN.

    The heaviest known weight is that of all n labels.
    """
    known = np.isfinite(chances)
    return Estimated(
        share(hits[known], chances[known], confidence),
        share(hits[~known], np.ones(np.count_nonzero(~known)), confidence),
    )


def estimates(recent: Recent, stopped: Bools, counted: Bools, confidence: float = 0.95) -> Estimates:
    """Return what the labels of decisions say of rules that stop those in `stopped` `[N]`.

    Only decisions in `counted` `[N]` have a part: those that the rules could judge.
    """
    harmful, benign = recent.labels == Label.HARMFUL, recent.labels == Label.BENIGN
    both = counted & (harmful | benign)
    chances = levelled(np.where(both, recent.chances, np.nan), recent.sources)
    heaviest = _heaviest(chances)
    known = np.isfinite(chances)

    def of(group: Bools, hits: Bools) -> Estimated:
        rows = both & group
        return Estimated(
            share(hits[rows & known], chances[rows & known], confidence, heaviest=heaviest),
            share(hits[rows & ~known], np.ones(np.count_nonzero(rows & ~known)), confidence),
        )

    return Estimates(
        fpr=of(benign, stopped),
        recall=of(harmful, stopped),
        precision=of(stopped, harmful),
        prevalence=of(both, harmful),
        labels={label: int(np.count_nonzero(counted & (recent.labels == label))) for label in Label},
    )


def _heaviest(chances: Floats) -> float | None:
    known = chances[np.isfinite(chances)]
    return float(1.0 / known.min()) if len(known) else None


def _upper(hits: Bools, weights: Floats, top: float, tail: float) -> float:
    """Return the upper end for the weighted share of hits: a quantile of the beta distribution with one more hit."""
    if hits.all():
        return 1.0
    total = float(weights.sum()) + top
    mean = (float(weights[hits].sum()) + top) / total
    spread = float((weights[hits] ** 2).sum() + top**2) * (1 - mean) ** 2 + float((weights[~hits] ** 2).sum()) * mean**2
    size = mean * (1 - mean) / (spread / total**2)
    return float(beta.ppf(1 - tail, mean * size, (1 - mean) * size))
