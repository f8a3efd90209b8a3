"""A confidence sequence for a share: an interval that may be looked at after every request, and holds at all of them.

It covers the mean, over the requests so far, of each one's chance to count, given all before it. That is the share
itself where traffic does not change, and no assumption is made beyond it: chances may vary, and depend on the past.

For a fixed slope s, `exp(s * hits - sum log(1 + p_i (e^s - 1)))` is a martingale. The logarithm is concave in p, so
putting the mean in the place of each p_i makes it smaller. A mixture over slopes of one sign is thus below a martingale
of mean 1, and exceeds 2 / alpha with probability at most alpha / 2 (Ville; the sub-Bernoulli case of arXiv 1808.03204,
mixed over a grid as in arXiv 1810.08240). Numbers between 0 and 1 may be summed in the place of hits.
"""

import math
from dataclasses import dataclass

import numpy as np

_SLOPES = np.geomspace(0.004, 8.0, 24)
_STEPS = 40


@dataclass(frozen=True, slots=True)
class Share:
    """A share and its interval."""

    hits: float
    count: int
    value: float
    """`hits / count`; 0 before any request."""
    low: float
    high: float


def share(hits: float, count: int, alpha: float = 0.05) -> Share:
    """Return the interval for `hits` of `count` requests, which always covers with probability at least `1 - alpha`.

    Raises `ValueError` unless `0 <= hits <= count` and `0 < alpha < 1`.
    """
    if not 0 <= hits <= count or not 0.0 < alpha < 1.0:
        raise ValueError(f"{hits} of {count} at {alpha}")
    if count == 0:
        return Share(0.0, 0, 0.0, 0.0, 1.0)
    low = _lower_end(hits, count, alpha)
    high = 1.0 - _lower_end(count - hits, count, alpha)
    return Share(hits, count, hits / count, low, high)


def _lower_end(hits: float, count: int, alpha: float) -> float:
    """Return the least share that is not refuted from below: the evidence against p falls as p grows."""
    limit = math.log(2.0 / alpha) + math.log(len(_SLOPES))
    low, high = 0.0, hits / count
    for _ in range(_STEPS):
        middle = (low + high) / 2
        evidence = _SLOPES * hits - count * np.log1p(middle * np.expm1(_SLOPES))
        refuted = float(np.logaddexp.reduce(evidence)) >= limit
        low, high = (middle, high) if refuted else (low, middle)
    return low
