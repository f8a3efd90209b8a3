"""Paired ratios and differences with their spread: the only comparison that survives a noisy machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


def ratio_of_turns(numerators: Sequence[Sequence[float]], denominators: Sequence[Sequence[float]]) -> Spread:
    """Return the spread over all turns of all pairs. Where a pair's sides differ in length, it counts as one turn.

    Pairs are resampled, not turns: the turns of one pair share its luck.
    """
    return spread(_rows([_by_turn(each, other) for each, other in zip(numerators, denominators, strict=True)]))


def ratio_by_start(numerators: Sequence[float], denominators: Sequence[float], starts: Sequence[int]) -> Spread:
    """Return the spread of numerators / denominators, pair by pair, where `starts` says which start each pair belongs
    to.

    Starts are resampled, not pairs: what a start finds counts for more than what its pairs differ in. Where there is
    one alone, its pairs are.
    """
    ratios, groups = np.asarray(numerators) / np.asarray(denominators), np.asarray(starts)
    numbers = np.unique(groups)
    if len(numbers) == 1:
        return spread(ratios)
    return replace(spread(_rows([ratios[groups == number] for number in numbers])), pairs=len(ratios))


def _rows(ratios: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return rows of different lengths as one array, filled up with NaN."""
    longest = max(map(len, ratios))
    return np.stack([np.pad(each, (0, longest - len(each)), constant_values=np.nan) for each in ratios])


def _by_turn(numerators: Sequence[float], denominators: Sequence[float]) -> npt.NDArray[np.float64]:
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return above / below if len(above) == len(below) else np.array([np.median(above) / np.median(below)])


def spread(values: npt.ArrayLike) -> Spread:
    """Return the median of `values` with its interval; rows of two-dimensional ones are resampled whole, and NaN is
    none.

    The bootstrap is seeded: same data, same interval.
    """
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    medians = np.nanmedian(array[picks].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Spread(float(np.nanmedian(array)), float(low), float(high), len(array))
