"""The population stability index (PSI) of recent scores against calibration's, and how much of it is noise.

`PSI = sum_b (p_b - q_b) ln(p_b / q_b)` over bins, with p the recent shares and q calibration's. With n recent scores,
m of calibration's and B bins, and no drift, it is about `(1/n + 1/m)` times a chi-square variable with B - 1 degrees
of freedom (Yurdakul and Naranjo, "Statistical properties of the population stability index", Journal of Risk Model
Validation 14(4), 2020). Its mean, `(B - 1)(1/n + 1/m)`, is the noise floor.

An index is looked at again and again, so one that exceeds its noise now and then is no alarm: the sequential test is
what raises those. The index says how large a drift is, in units that people know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import chi2

from guard.drift.reference import Reference
from guard.drift.state import BinsState

Band = Literal["too few", "stable", "moderate", "major"]
MODERATE, MAJOR = 0.1, 0.25
"""The usual bands begin here."""
_FEWEST_PER_BIN = 5
_RESCALED_AT = 1e100
_EMPTY = 0.5
"""Added to each bin, so that an empty one has a finite logarithm."""


@dataclass(frozen=True, slots=True)
class Stability:
    """A stability index, and what to make of it."""

    psi: float
    noise: float
    """Its mean were there no drift."""
    noise_99: float
    """What it exceeds once in a hundred looks were there no drift."""
    beyond: float
    """`psi - noise` where `psi` is above `noise_99`, else 0: the part that is drift."""
    band: Band
    """Of `beyond`; "too few" below 5 recent scores for each bin."""
    effective_count: float
    """Recent scores, each counted by its weight: `(sum w)^2 / sum w^2`."""


def stability(reference: Reference, recent: Sequence[float], effective_count: float) -> Stability:
    """Return the index of `recent` weights `[B]` of the reference's bins.

    `effective_count` is the number of scores that the weights are worth. Raises `ValueError` for another number of
    bins.
    """
    benign = np.asarray(reference.counts, dtype=np.float64)
    weights = np.asarray(recent, dtype=np.float64)
    if weights.shape != benign.shape:
        raise ValueError(f"{len(weights)} weights for {len(benign)} bins")
    bins, total = len(benign), float(weights.sum())
    if total <= 0.0:
        return Stability(0.0, 0.0, 0.0, 0.0, "too few", 0.0)
    p = weights / total * effective_count + _EMPTY
    q = benign + _EMPTY
    p, q = p / p.sum(), q / q.sum()
    psi = float(((p - q) * np.log(p / q)).sum())
    # A bin without benign scores, beside a tied value, varies not at all while there is no drift.
    freedom = max(int((benign > 0).sum()) - 1, 1)
    unit = 1.0 / effective_count + 1.0 / reference.size
    floor, high = freedom * unit, float(chi2.isf(0.01, freedom)) * unit
    beyond = psi - floor if psi > high else 0.0
    few = effective_count < _FEWEST_PER_BIN * bins
    return Stability(psi, floor, high, beyond, "too few" if few else _band(beyond), effective_count)


def _band(beyond: float) -> Band:
    return "major" if beyond >= MAJOR else "moderate" if beyond >= MODERATE else "stable"


class RecentBins:
    """Counts of recent scores by bin, exponentially forgotten: one number for each bin, and no scores."""

    def __init__(self, bins: int, window: int) -> None:
        """`window` is how many scores the counts are worth in the long run."""
        # Weights r^k are worth (1 + r) / (1 - r) scores in the end; a later score weighs more, instead of all less.
        self._growth = (window + 1.0) / max(window - 1.0, 1e-9)
        self._step = 1.0
        self._weights = [0.0] * bins
        self._squares = 0.0

    def add(self, index: int) -> None:
        """Count a score in the bin of this index."""
        self._step *= self._growth
        self._weights[index] += self._step
        self._squares += self._step * self._step
        if self._step > _RESCALED_AT:
            self._weights, self._squares, self._step = self.weights, self.squares, 1.0

    @property
    def weights(self) -> list[float]:
        """Weights `[B]`, the last score's being 1."""
        return [weight / self._step for weight in self._weights]

    @property
    def squares(self) -> float:
        """Sum of the scores' squared weights."""
        return self._squares / self._step / self._step

    @property
    def effective_count(self) -> float:
        """How many equally weighted scores these weights are worth."""
        total = sum(self.weights)
        return total * total / self.squares if self._squares else 0.0

    def state(self) -> BinsState:
        """Return plain data from which `restore` makes the counts what they are."""
        return BinsState(weights=self.weights, squares=self.squares)

    def restore(self, state: BinsState) -> None:
        """Take on saved counts. Raises `ValueError` for another number of bins."""
        if len(state.weights) != len(self._weights):
            raise ValueError("saved weights are of other bins")
        self._weights, self._squares, self._step = list(state.weights), state.squares, 1.0
