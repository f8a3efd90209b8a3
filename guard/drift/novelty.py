"""Share out of distribution: how many prompts a novelty probe finds further out than most benign ones of calibration.

A novelty probe says how unlike benign prompts a prompt is, and not how harmful. Its rare high values are what counts,
so one bet is made on them: on the share above one high quantile of calibration's benign scores, at the upper
confidence bound of calibration's own share. The test is that of `guard.drift.sequential`, and may be looked at any
time. Its null hypothesis is that of `guard.drift.bets`.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from guard.drift.bets import Bets
from guard.drift.interval import share
from guard.drift.reference import Cut, Reference
from guard.drift.sequential import SequentialTest
from guard.drift.settings import DriftSettings
from guard.drift.snapshot import OutOfDistribution
from guard.drift.stability import RecentBins
from guard.drift.state import NoveltyState
from probes.errors import CalibrationError


def novelty_reference(scores: npt.ArrayLike, quantile: float, confidence: float) -> Reference:
    """Return the reference with one cut, at a `quantile` of benign `scores` `[m]`, and two bins, below and above it.

    The cut's bound holds with this `confidence`, as `reference.Reference` has it. Raises `CalibrationError` for no
    scores, and for one that is NaN or infinite.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not len(ordered) or not np.isfinite(ordered).all():
        raise CalibrationError(
            "there are no benign scores, or one is NaN or infinite",
            field="benign_scores",
            remedy="score the prompts again with a valid artifact",
        )
    size = len(ordered)
    rank = min(max(math.ceil(quantile * size), 1), size)
    value = float(ordered[rank - 1])
    above = int((ordered > value).sum())
    most = float(beta.isf(1.0 - confidence, size - rank + 1, rank))
    cut = Cut(value, above=True, most=most)
    return Reference((value,), (size - above, above), (cut,), size, float(ordered.std()), confidence)


class NoveltyWatch:
    """The share of one probe's scores above its quantile."""

    def __init__(self, adapter: str, name: str, reference: Reference, settings: DriftSettings, among: int) -> None:
        """`reference` is `novelty_reference`'s. `among` is the number of tests that share the sink's false alarms."""
        self.adapter, self.name, self._reference = adapter, name, reference
        self._settings = settings
        self._bets = Bets.against(reference, settings.allowance)
        self._test = SequentialTest(self._bets, among / settings.false_alarm, settings.run_length * among)
        self._recent = RecentBins(2, settings.window)
        self._hits = self._count = 0

    def add(self, score: float) -> None:
        """Take in one score. One that is not finite is left out."""
        if not math.isfinite(score):
            return
        value = self._reference.cuts[0].value
        is_above = score > value
        self._count += 1
        self._hits += is_above
        self._test.add(2 if is_above else 1 if score == value else 0)
        self._recent.add(is_above)

    def drift(self) -> OutOfDistribution:
        """Return what it shows."""
        recent, evidence, reference = self._recent.weights, self._test.evidence(), self._reference
        most = reference.cuts[0].most
        allowed = (1.0 - self._settings.allowance) * most + self._settings.allowance
        return OutOfDistribution(
            adapter=self.adapter,
            probe=self.name,
            drifted=evidence.drifted,
            above=reference.cuts[0].value,
            share=share(self._hits, self._count),
            recent=recent[1] / sum(recent) if self._count else 0.0,
            usual=reference.counts[1] / reference.size,
            tolerated=allowed,
            can_alarm=self._bets.num_cuts > 0,
            evidence=evidence,
        )

    def state(self) -> NoveltyState:
        """Return plain data from which `restore` makes the watch what it is."""
        return NoveltyState(
            against=self._against,
            hits=self._hits,
            count=self._count,
            test=self._test.state(),
            recent=self._recent.state(),
        )

    def restore(self, state: NoveltyState) -> bool:
        """Take on a saved watch; return whether it fits, and change nothing where it does not."""
        bettors = self._bets.log_growth.shape[1]
        sizes = len(state.test.log_wealth), len(state.test.sums), len(state.recent.weights)
        if state.against != self._against or sizes != (bettors, bettors, 2):
            return False
        self._test.restore(state.test)
        self._recent.restore(state.recent)
        self._hits, self._count = state.hits, state.count
        return True

    @property
    def _against(self) -> str:
        return f"{self._reference.digest}/{self._settings.allowance!r}"
