"""Reliability: whether probabilities of harm mean what they say, as Brier score and expected calibration error.

A map fitted at one share of harmful prompts is wrong at another, however good the probe. Both are reported: as
calibrated, and moved to the share of the split that it is measured on (`Platt.at`), which leaves what is wrong with the
map itself.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from calibration.recording.stage_file import Strict
from probes.manifest import Platt

_BINS = 10
_NUM_DRAWS = 500
_SEED = 20_261


class Interval(Strict):
    """A number with its 95 % bootstrap interval (percentiles of draws of prompts)."""

    value: float
    low: float
    high: float


class Reliability(Strict):
    """How good the probabilities are that one map gives on one split."""

    prevalence: float
    """The share of harmful prompts that the map is for."""
    brier: Interval
    """Mean squared distance of the probability from the label, 0 or 1."""
    ece: Interval
    """Expected calibration error: mean distance of predicted from observed share, over ten bins of equal size."""
    ece_by_chance: float
    """What a perfect map's ECE stays below in 95 of 100 samples of this size: the ECE of a finite sample is never 0."""


def reliability(
    scores: npt.NDArray[np.floating], harmful: npt.NDArray[np.bool_], platt: Platt | None
) -> tuple[Reliability, ...]:
    """Return the reliability of `platt` on scores `[N]` with labels `[N]`: as calibrated, and at these labels'
    prevalence.

    Empty for a probe without a map, or with one that does not say at which prevalence it was fitted.
    """
    if platt is None or platt.prevalence is None:
        return ()
    return tuple(_measure(scores, harmful, each) for each in (platt, platt.at(float(harmful.mean()))))


def expected_calibration_error(predicted: npt.NDArray[np.float64], harmful: npt.NDArray[np.bool_]) -> float:
    """Return the ECE of probabilities `[N]` with labels `[N]`."""
    bins = equal_bins(predicted, _BINS)
    return float(np.abs(np.bincount(bins, predicted - harmful)).sum() / len(predicted))


def equal_bins(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the bin `[N]`, from 0, of each of `values` `[N]`: as equal in size as ties, which stay together, allow."""
    edges = np.unique(np.quantile(values, np.arange(1, count) / count, method="lower"))
    return np.searchsorted(edges, values, side="right")


def _measure(scores: npt.NDArray[np.floating], harmful: npt.NDArray[np.bool_], platt: Platt) -> Reliability:
    predicted = expit(platt.slope * scores.astype(np.float64) + platt.intercept)
    gaps, bins, count = predicted - harmful, equal_bins(predicted, _BINS), len(predicted)
    rng = np.random.default_rng(_SEED)
    brier, ece, chance = np.empty(_NUM_DRAWS), np.empty(_NUM_DRAWS), np.empty(_NUM_DRAWS)
    for draw in range(_NUM_DRAWS):
        rows = rng.integers(count, size=count)
        brier[draw] = (gaps[rows] ** 2).mean()
        ece[draw] = np.abs(np.bincount(bins[rows], gaps[rows])).sum() / count
        chance[draw] = np.abs(np.bincount(bins, predicted - (rng.random(count) < predicted))).sum() / count
    return Reliability(
        prevalence=float(platt.prevalence or 0.0),
        brier=_interval(float((gaps**2).mean()), brier),
        ece=_interval(expected_calibration_error(predicted, harmful), ece),
        ece_by_chance=float(np.quantile(chance, 0.95)),
    )


def _interval(value: float, draws: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value=value, low=float(low), high=float(high))
