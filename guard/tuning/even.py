"""An even sample out of labels that were picked unevenly: what promises with confidence can be certified on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.tuning.chance import drawn
from guard.tuning.recent import Objects


@dataclass(frozen=True, slots=True, eq=False)
class Even:
    """Which labels stay, so that each decision of the traffic had the same chance to be among them."""

    stays: npt.NDArray[np.bool_]
    """`[n]`."""
    unknown: int
    """Labels whose chance is not known: none of them stays."""

    @property
    def count(self) -> int:
        """How many labels stay."""
        return int(np.count_nonzero(self.stays))

    @property
    def thinned(self) -> int:
        """How many labels with a known chance went, because decisions like theirs were picked more often."""
        return len(self.stays) - self.count - self.unknown


def even(keys: npt.NDArray[np.int64], chances: npt.NDArray[np.float64], sources: Objects) -> Even:
    """Thin labels with `chances` `[n]` to an even sample: each stays with probability c / chance, where c is the least
    chance of all labels from its source in `sources` `[n]`.

    Chances of one source are known up to a factor, so each is thinned for itself: what stays of it is even, and so are
    all of these together.

    The draw of a decision comes from its key in `keys` `[n]` and is the same each time: who asks again does not get a
    sample that suits better. Thinning a Poisson sample gives a Poisson sample with the product of the two chances
    (Särndal, Swensson and Wretman 1992, *Model Assisted Survey Sampling*, 9.8), so that what stays is exchangeable.
    """
    known = np.isfinite(chances)
    stays, numbers = np.zeros(len(keys), dtype=bool), drawn(keys, "even")
    for rows in by_source(sources, known):
        stays[rows] = numbers[rows] * chances[rows] < chances[rows].min()
    return Even(stays, int(np.count_nonzero(~known)))


def levelled(chances: npt.NDArray[np.float64], sources: Objects) -> npt.NDArray[np.float64]:
    """Return chances `[n]` with another factor for each source, so that labels of all of them can be weighed together.

    A source then has as much weight in all as even labels would that say as much: Kish's effective number of them
    (1965, *Survey Sampling*, 8.2). Unknown chances stay NaN.
    """
    found = chances.copy()
    for rows in by_source(sources, np.isfinite(chances)):
        weights = 1.0 / chances[rows]
        found[rows] *= (weights**2).sum() / weights.sum()
    return found


def by_source(sources: Objects, known: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.intp]]:
    """Yield, of the labels in `known` `[n]`, the places of those from each source."""
    places = np.flatnonzero(known)
    named = sources[places]
    for source in dict.fromkeys(named.tolist()):
        yield places[named == source]
