"""Paired ratios with their spread: the only comparison that survives a noisy machine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of two paired series: median of the pairs' ratios, with a 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}, {self.pairs} pairs)"


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Return numerators / denominators, pair by pair. The bootstrap's generator is seeded: same data, same interval."""
    ratios = np.asarray(numerators) / np.asarray(denominators)
    picks = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))
