"""The reference: what calibration's benign scores of one probe say of the scores to come.

A reference holds two things. Its bins are for the stability index. Its cuts are for the sequential test, each with a
bound on the share of benign traffic beyond it. The bounds hold together with the stated confidence, whatever the
scores' distribution: the share of traffic above the j-th least of m scores has the distribution Beta(m - j + 1, j) if
scores are continuous (David and Nagaraja, "Order Statistics", 2003). Ties only lower it, since "beyond" is strict.
"""

import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from guard.threshold import share_confidence
from probes.errors import CalibrationError

LEVELS_ABOVE = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Quantiles above which scores are counted. Lower ones say little: nearly everything is above them anyway."""
LEVELS_BELOW = tuple(round(1 - level, 2) for level in LEVELS_ABOVE)
_FEWEST_IN_BIN = 5


@dataclass(frozen=True, slots=True)
class Cut:
    """One value of a score, and how much benign traffic may lie strictly beyond it."""

    value: float
    above: bool
    """Whether "beyond" is above the value. Otherwise it is below."""
    most: float
    """Upper confidence bound on the share of benign traffic beyond the value."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Benign scores of one probe, summed up. Build it by `of`."""

    edges: tuple[float, ...]
    """Upper ends of all bins but the last, ascending. A score on an edge belongs to the bin below it."""
    counts: tuple[int, ...]
    """Benign scores in each bin: one more than there are edges."""
    cuts: tuple[Cut, ...]
    size: int
    """Number of benign scores."""
    spread: float
    """Their standard deviation, in the probe's units."""
    confidence: float
    """Probability, over draws of the benign sample, that the bounds of all cuts hold."""

    @classmethod
    def of(cls, scores: npt.ArrayLike, *, num_bins: int = 20, confidence: float = 0.99) -> "Reference":
        """Return the reference of benign `scores` `[m]`, in the probe's own units (logits).

        Bins have equal mass, and at least 5 scores each, so few scores make few bins. A value on which more than a
        bin's mass is tied has a bin of its own. Few scores make loose bounds, and a test that is slow but valid.
        Raises `CalibrationError` for no scores, for one that is NaN or infinite, and for a bad confidence.
        """
        ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
        if not len(ordered) or not np.isfinite(ordered).all():
            raise CalibrationError(
                "there are no benign scores, or one is NaN or infinite",
                field="benign_scores",
                remedy="score the prompts again with a valid artifact",
            )
        if not 0.0 < confidence < 1.0 or num_bins < 1:
            raise CalibrationError(
                f"confidence {confidence} or num_bins {num_bins} is out of range",
                field="reference",
                remedy="give a confidence such as 0.99 and one bin or more",
            )
        edges = _edges(ordered, min(num_bins, max(1, len(ordered) // _FEWEST_IN_BIN)))
        filled = np.bincount(np.searchsorted(edges, ordered, side="left"), minlength=len(edges) + 1)
        return cls(
            edges=tuple(edges),
            counts=tuple(filled.tolist()),
            cuts=_cuts(ordered, confidence),
            size=len(ordered),
            spread=float(ordered.std()),
            confidence=confidence,
        )

    @property
    def values(self) -> list[float]:
        """The values of the cuts, ascending, each once."""
        return sorted({cut.value for cut in self.cuts})

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell one reference from another. A saved state names the one it belongs to."""
        said = [self.edges, self.counts, [(cut.value, cut.above, cut.most) for cut in self.cuts], self.size]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def bin_of(self, score: float) -> int:
        """Return the index of the bin that holds `score`."""
        return bisect_left(self.edges, score)


def cell_of(values: Sequence[float], score: float) -> int:
    """Return where `score` lies among ascending `values` `[V]`, from 0 to 2V.

    Odd cells are the values themselves, and even ones lie between them: ties with a cut are beyond it on neither side.
    """
    return bisect_left(values, score) + bisect_right(values, score)


def references(
    names: Sequence[str], scores: npt.ArrayLike, *, confidence: float = 0.99, among: int | None = None
) -> dict[str, Reference]:
    """Return the references of K probes by their `names`, from one artifact's benign `scores` `[N, K]`.

    All their bounds hold at once with the stated confidence (Bonferroni), and with those of others, where `among` is
    the number of all. Raises `CalibrationError`.
    """
    columns = np.asarray(scores, dtype=np.float64)
    if columns.ndim != 2 or columns.shape[1] != len(names):
        raise CalibrationError(
            f"benign scores of shape {columns.shape} are not of {len(names)} probes",
            field="benign_scores",
            remedy="give a row for each prompt and a column for each probe",
        )
    each = share_confidence(confidence, max(among or len(names), 1))
    return {name: Reference.of(columns[:, index], confidence=each) for index, name in enumerate(names)}


def _edges(ordered: npt.NDArray[np.float64], bins: int) -> list[float]:
    ends = [float(ordered[math.ceil(k * len(ordered) / bins) - 1]) for k in range(1, bins)]
    if ordered[0] == ordered[-1]:
        ends = [float(ordered[0])] * 2
    tied = {value for value, following in pairwise(ends) if value == following}
    # The next lower number ends the bin before, so that the tied value has its bin to itself.
    return sorted({*ends, *(math.nextafter(value, -math.inf) for value in tied)})


def _cuts(ordered: npt.NDArray[np.float64], confidence: float) -> tuple[Cut, ...]:
    """Return one cut for each value and side, with the least of the bounds that tied levels give it.

    Levels are fixed before the scores are seen, and the error probability is shared evenly among them (Bonferroni).
    """
    size = len(ordered)
    each = (1.0 - confidence) / (len(LEVELS_ABOVE) + len(LEVELS_BELOW))
    most: dict[tuple[float, bool], float] = {}
    for above, levels in ((True, LEVELS_ABOVE), (False, LEVELS_BELOW)):
        for level in levels:
            rank = min(max(math.ceil(level * size), 1), size)
            beyond = size - rank if above else rank - 1
            bound = float(beta.isf(each, beyond + 1, size - beyond))
            key = (float(ordered[rank - 1]), above)
            most[key] = min(bound, most.get(key, 1.0))
    return tuple(Cut(value, above, bound) for (value, above), bound in sorted(most.items()))
