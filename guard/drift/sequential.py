"""The sequential test of one stream of scores: an e-process for a change that is there, an e-detector for a late one.

The e-process is the mean wealth of the bettors since the stream began. By Ville's inequality it ever reaches 1 / a
with probability at most a under the null of `guard.drift.bets`, however often one looks. It loses wealth while all is
well, so a change after a quiet month would take long to show. The e-detector is the sum, over all past starting times,
of the e-processes begun then, as in Shiryaev and Roberts' procedure (arXiv 2203.03532). Under the null it takes A
requests on average, or more, to reach A: no month is too quiet for it.

A stream is settled every 32 scores, or when it is asked. The position of an alarm is exact all the same.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from guard.drift.bets import Bets
from guard.drift.state import TestState

SETTLED_EVERY = 32
"""Scores that wait to be settled together: one call of numpy costs as much for 32 as for one."""
_LARGEST = 1e250
"""Beyond this, evidence is not counted on: it would overflow."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a stream has to say."""

    count: int
    """Scores since the stream began."""
    e_value: float
    """The e-process now. 1 is no evidence."""
    largest_e_value: float
    """Its largest value so far. One over it is a p-value that is valid at any time."""
    detector: float
    """The e-detector now."""
    alarm_at: int | None
    """The score, counted from 1, at which the e-process reached its limit."""
    detector_alarm_at: int | None
    """The score at which the e-detector first reached its limit."""

    @property
    def drifted(self) -> bool:
        """Whether either raised an alarm."""
        return self.alarm_at is not None or self.detector_alarm_at is not None


@dataclass(slots=True)
class SequentialTest:
    """One stream's test. It holds two numbers for each bettor, and no scores."""

    bets: Bets
    e_limit: float
    """The e-process raises an alarm here: 1 / a."""
    detector_limit: float
    """The e-detector raises an alarm here: the average number of scores between false alarms."""
    count: int = 0
    largest: float = 1.0
    alarm_at: int | None = None
    detector_alarm_at: int | None = None
    _log_wealth: Floats = field(init=False)
    _sums: Floats = field(init=False)
    _waiting: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._log_wealth = np.zeros(self.bets.log_growth.shape[1])
        self._sums = np.zeros(self.bets.log_growth.shape[1])

    def add(self, cell: int) -> None:
        """Take a score in, by the cell it lies in (`reference.cell_of`)."""
        self._waiting.append(cell)
        if len(self._waiting) >= SETTLED_EVERY:
            self._settle()

    def evidence(self) -> Evidence:
        """Return what the scores so far say."""
        self._settle()
        now = float(_mean_wealth(self._log_wealth))
        return Evidence(self.count, now, self.largest, float(self._sums.mean()), self.alarm_at, self.detector_alarm_at)

    def state(self) -> TestState:
        """Return plain data from which `restore` makes the test what it is."""
        self._settle()
        return TestState(
            count=self.count,
            largest=self.largest,
            alarm_at=self.alarm_at,
            detector_alarm_at=self.detector_alarm_at,
            log_wealth=self._log_wealth.tolist(),
            sums=self._sums.tolist(),
        )

    def restore(self, state: TestState) -> None:
        """Take on what a test with the same bets was. Raises `ValueError` where it has another number of bettors."""
        if not len(state.log_wealth) == len(state.sums) == len(self._sums):
            raise ValueError("a saved test has another number of bettors")
        self.count, self.largest = state.count, state.largest
        self.alarm_at, self.detector_alarm_at = state.alarm_at, state.detector_alarm_at
        self._log_wealth, self._sums = np.array(state.log_wealth, float), np.array(state.sums, float)
        self._waiting.clear()

    def _settle(self) -> None:
        if not self._waiting:
            return
        gained = np.cumsum(self.bets.log_growth[self._waiting], axis=0)
        wealth = _mean_wealth(self._log_wealth + gained)
        # R_n = (R_(n-1) + 1) * growth_n, written out: each start before n adds the growth since.
        growth = np.exp(gained)
        started = 1.0 + np.vstack((np.zeros(growth.shape[1]), np.cumsum(1.0 / growth[:-1], axis=0)))
        sums = np.minimum(growth * (self._sums + started), _LARGEST)
        self.alarm_at = self.alarm_at or self._first(wealth, self.e_limit)
        self.detector_alarm_at = self.detector_alarm_at or self._first(sums.mean(axis=1), self.detector_limit)
        self.largest = max(self.largest, float(wealth.max()))
        self.count += len(self._waiting)
        self._log_wealth = self._log_wealth + gained[-1]
        # A copy: a view would keep all rows of the block in memory, for each stream.
        self._sums = sums[-1].copy()
        self._waiting.clear()

    def _first(self, reached: Floats, limit: float) -> int | None:
        over = np.flatnonzero(reached >= limit)
        return self.count + int(over[0]) + 1 if len(over) else None


def _mean_wealth(log_wealth: Floats) -> Floats:
    return np.asarray(np.exp(np.minimum(log_wealth, np.log(_LARGEST))).mean(axis=-1))
