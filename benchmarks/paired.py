"""Paired ratios and differences with their spread: the only comparison that survives a noisy machine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Spread:
    """A median over pairs, with a 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    pairs: int


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of numerators / denominators, pair by pair."""
    return spread(np.asarray(numerators) / np.asarray(denominators))


def spread(values: npt.ArrayLike) -> Spread:
    """Return the median of `values` with its interval. The bootstrap is seeded: same data, same interval."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(np.median(array[picks], axis=1), [0.025, 0.975])
    return Spread(float(np.median(array)), float(low), float(high), len(array))
