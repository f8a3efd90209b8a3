"""Bets against "traffic is benign": what each score multiplies the wealth of each bettor by.

The null hypothesis. Each request is benign with probability at least 1 - allowance, given all before it. Benign scores
are distributed as those that calibration drew its sample from. The rest, a share of `allowance`, may come from anywhere
and may be chosen by an adversary who sees the past (Huber's contamination, as in arXiv 2408.14015).

Under it, the chance that the next score lies beyond a cut is at most `(1 - allowance) * most + allowance`, where `most`
is the cut's confidence bound. A bettor has a cut and a chance `p` that is higher than this bound `q`. It multiplies its
wealth by `p / q` when a score is beyond the cut, and by `(1 - p) / (1 - q)` when not. The expected factor is at most 1
whatever the true chance up to `q`, so each bettor's wealth is a test supermartingale, and so is their mean. Where the
bounds do not all hold, nothing is promised: that has the probability `1 - confidence` over draws of the benign sample.

An alarm thus means that traffic is not what calibration saw, beyond the allowance. It does not mean harm. One prompt
that comes a thousand times, such as a health check, is drift. So is a tenant whose benign prompts always scored higher
than most: thresholds that calibration certified are promised nothing about that tenant.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.drift.reference import Reference
from probes.errors import CalibrationError

ODDS_RATIOS = (1.3, 2.0, 4.0)
"""How much higher than tolerated a bettor holds the odds to be. Small ones find small shifts, large ones fast ones."""
_HOPELESS = 0.98
"""Where this much is tolerated, no bettor can win, and each would cost the others a part of the wealth."""


@dataclass(frozen=True, slots=True)
class Bets:
    """The bettors of one reference."""

    log_growth: npt.NDArray[np.float64]
    """Logarithm of the factor, `[cells, bettors]`: a row for each cell that `reference.cell_of` tells."""
    num_cuts: int
    """Cuts that are bet on. None: calibration's scores are too few, and the test never speaks."""

    @classmethod
    def against(cls, reference: Reference, allowance: float) -> "Bets":
        """Return the bettors against `reference`, with `allowance` the share of traffic that may come from anywhere.

        Raises `CalibrationError` unless `0 <= allowance < 1`.
        """
        if not 0.0 <= allowance < 1.0:
            raise CalibrationError(
                f"{allowance} is not a share", field="allowance", remedy="give 0 or more, and less than 1"
            )
        values = reference.values
        cells = np.arange(2 * len(values) + 1)
        columns: list[npt.NDArray[np.float64]] = []
        for cut in reference.cuts:
            tolerated = (1.0 - allowance) * cut.most + allowance
            if tolerated > _HOPELESS:
                continue
            own = 2 * values.index(cut.value) + 1
            beyond = cells > own if cut.above else cells < own
            columns.extend(_log_growth(beyond, tolerated, ratio) for ratio in ODDS_RATIOS)
        if not columns:
            return cls(np.zeros((len(cells), 1)), 0)
        return cls(np.ascontiguousarray(np.stack(columns, axis=1)), len(columns) // len(ODDS_RATIOS))


def _log_growth(beyond: npt.NDArray[np.bool_], tolerated: float, ratio: float) -> npt.NDArray[np.float64]:
    # With odds `ratio` times those of q: p / q = ratio / s and (1 - p) / (1 - q) = 1 / s.
    scale = np.log1p((ratio - 1.0) * tolerated)
    return np.asarray(np.where(beyond, np.log(ratio), 0.0) - scale)
