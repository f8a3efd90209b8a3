"""CUSUM (Page 1954, Biometrika 41) for a rate of rare events: flags, or prompts without a score.

After each request the statistic is `max(0, S + 1{event} - reference)`, the log-likelihood ratio of the shifted against
the usual rate in units of one event. The reference is rounded to 1 / k for a whole k, so that k * S moves on whole
numbers and the average run length follows exactly from a Markov chain (Reynolds and Stoumbos 1999, Journal of Quality
Technology 31; Brook and Evans 1972, Biometrika 59). Nothing is looked up or approximated.

The run length is promised where requests are independent and the rate is the usual one, or lower. Events that come in
bursts cut it short.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_banded

from guard.drift.state import CusumState
from probes.errors import CalibrationError

_MOST_STATES = 1_000_000
_MOST_NUMBERS = 20_000_000
"""That a chain takes: 160 MB."""
_LONGEST = 1e9
"""A longer run length loses the digits that it needs."""


@dataclass(frozen=True, slots=True)
class Design:
    """A CUSUM's design."""

    usual: float
    """Rate of events while all is well."""
    shifted: float
    """The rate that is to be seen soonest."""
    steps: int
    """k: each event raises the statistic by `k - 1`, and each other request lowers it by 1, down to 0."""
    limit: int
    """An alarm is raised at this value."""
    run_length: float
    """Requests before a false alarm, on average, at the usual rate: at least what was asked for."""

    @classmethod
    def of(cls, usual: float, shifted: float, run_length: float) -> "Design":
        """Return the most sensitive design whose average run length at the `usual` rate is at least `run_length`.

        Raises `CalibrationError` unless `0 < usual < shifted < 1`, and where no chain of a bearable size will do.
        """
        return _design(usual, shifted, run_length)

    def delay(self, rate: float) -> float:
        """Return the requests that an alarm takes on average, from 0, where events have this `rate`."""
        return float(run_lengths(rate, self.steps, self.limit)[0])


def run_lengths(rate: float, steps: int, limit: int) -> npt.NDArray[np.float64]:
    """Return the average number of requests to an alarm, from each value of the statistic below `limit`, `[limit]`.

    They solve `N_i = 1 + (1 - rate) N_(i-1) + rate N_(i+steps-1)`, with `N_(-1) = N_0`, and 0 at the limit and beyond.
    Values are cut into blocks of `steps - 1`, from the top. Each value then follows from the one below it and one in
    the block above, so the only unknowns are the values just below each block: a handful, however long the chain.
    """
    jump = steps - 1
    tops = list(range(limit, 1, -jump))
    last = len(tops)
    # Each row is a value: its part that is known, then its factors of the unknowns, the last of which is N_0.
    rows = np.zeros((limit + jump, last + 2))
    rows[0, last + 1] = 1.0
    for number, top in enumerate(tops):
        bottom = max(top - jump, 1)
        sources = rate * rows[bottom + jump : top + jump]
        sources[:, 0] += 1.0
        sources[0, last + 1 if bottom == 1 else number + 1] += 1.0 - rate
        band = np.stack((np.ones(top - bottom), np.full(top - bottom, rate - 1.0)))
        rows[bottom:top] = solve_banded((1, 0), band, sources)
    # The top of each block is the unknown below the block above it; N_0 has its own equation.
    equations = np.zeros((last + 1, last + 1))
    known = np.zeros(last + 1)
    for number, top in enumerate(tops[1:]):
        equations[number], known[number] = -rows[top - 1, 1:], rows[top - 1, 0]
        equations[number, number] += 1.0
    if tops:
        equations[last - 1, last - 1] = 1.0
    equations[last], known[last] = -rate * rows[jump, 1:], 1.0 + rate * rows[jump, 0]
    equations[last, last] += rate
    unknowns = np.linalg.solve(equations, known)
    return np.asarray(rows[:limit, 0] + rows[:limit, 1:] @ unknowns)


@lru_cache(maxsize=32)
def _design(usual: float, shifted: float, run_length: float) -> Design:
    if not 0.0 < usual < shifted < 1.0:
        raise CalibrationError(
            f"{usual:g} and {shifted:g} are not two rates, the lower one first",
            field="drift",
            remedy="give a usual rate such as 0.01 and a higher one that should be seen",
        )
    if not 1.0 <= run_length <= _LONGEST:
        raise CalibrationError(
            f"{run_length:g} requests between false alarms cannot be computed",
            field="drift.run_length",
            remedy=f"give a number up to {_LONGEST:g}",
        )
    per_event = math.log(shifted * (1 - usual) / (usual * (1 - shifted)))
    steps = max(2, round(per_event / -math.log((1 - shifted) / (1 - usual))))

    def reached(limit: int) -> float:
        if limit > _MOST_STATES or limit * (limit // (steps - 1) + 3) > _MOST_NUMBERS:
            raise CalibrationError(
                f"a rate of {usual:g} against {shifted:g} takes too long a chain for a run of {run_length:g}",
                field="drift",
                remedy="ask for a larger shift, a higher usual rate, or a shorter run",
            )
        return float(run_lengths(usual, steps, limit)[0])

    high = steps
    while reached(high) < run_length:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= run_length else (middle, high)
    return Design(usual, shifted, steps, high, reached(high))


class Cusum:
    """One CUSUM, and how many requests and events it saw."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.level = self.count = self.events = 0
        self.alarm_at: int | None = None
        """The request, counted from 1, at which the limit was first reached."""

    def add(self, event: bool) -> None:
        """Take in one request, and whether it is an event."""
        self.count += 1
        if event:
            self.events += 1
            self.level = min(self.level + self.design.steps - 1, self.design.limit)
            if self.alarm_at is None and self.level >= self.design.limit:
                self.alarm_at = self.count
        elif self.level:
            self.level -= 1

    def state(self) -> CusumState:
        """Return plain data from which `restore` makes the CUSUM what it is."""
        return CusumState(
            steps=self.design.steps,
            limit=self.design.limit,
            level=self.level,
            count=self.count,
            events=self.events,
            alarm_at=self.alarm_at,
        )

    def restore(self, state: CusumState) -> None:
        """Take on what a CUSUM of the same design was. Raises `ValueError` for another design."""
        if (state.steps, state.limit) != (self.design.steps, self.design.limit):
            raise ValueError("a saved CUSUM has another design")
        self.level, self.count, self.events = state.level, state.count, state.events
        self.alarm_at = state.alarm_at
