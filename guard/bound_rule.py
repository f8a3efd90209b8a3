"""A rule whose thresholds are numbers: does it fire on this prompt, on which of these, and wherever another one
would?
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.verdict import Action

Columns = Mapping[str, npt.NDArray[np.float64]]
"""Request scores `[N]` by probe or combination."""


@dataclass(frozen=True, slots=True)
class Band:
    """One condition, resolved: `above < score < below`."""

    score: str
    above: float
    below: float

    def holds(self, scores: Mapping[str, float]) -> bool:
        """Whether the score of one prompt lies within."""
        return self.above < scores[self.score] < self.below

    def contains(self, other: "Band") -> bool:
        """Whether every score within `other` lies within this band."""
        return self.score == other.score and self.above <= other.above and other.below <= self.below


@dataclass(frozen=True, slots=True)
class BoundRule:
    """An action, and the bands that must all hold for it."""

    name: str
    action: Action
    bands: tuple[Band, ...]
    category: str | None = None
    """What the rule is about."""

    @property
    def reads(self) -> frozenset[str]:
        """The probes and combinations that it asks about."""
        return frozenset(band.score for band in self.bands)

    def holds(self, scores: Mapping[str, float]) -> bool:
        """Whether the rule fires on one turn."""
        return all(band.holds(scores) for band in self.bands)

    def fires(self, columns: Columns) -> npt.NDArray[np.bool_]:
        """Return on which of N prompts the rule fires."""
        within = [(band.above < columns[band.score]) & (columns[band.score] < band.below) for band in self.bands]
        return np.asarray(np.logical_and.reduce(within))

    def covers(self, other: "BoundRule") -> bool:
        """Whether this rule fires wherever `other` does, whatever the scores."""
        return all(any(band.contains(inner) for inner in other.bands) for band in self.bands)
