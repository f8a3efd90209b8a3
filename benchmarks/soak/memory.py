"""Whether memory is flat: what each process holds late in the run against what it held after it had warmed up.

A process that serves for the first time fills caches and its allocator's pools; that ends. What a request leaves behind
does not end: it grows with the number of requests, so growth is given per 1,000 of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP = 5000
"""Requests after which a server is warm."""
LEAST = 10_000
"""Requests after that without which nothing can be said: the noise is larger than what a real leak would show."""
LIMIT_MB = 0.25
"""Megabytes per 1,000 requests: 256 bytes a request. Any object of a request's that stayed would be more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the server's processes."""

    answered: int
    """Requests until now."""
    resident_mb: Mapping[str, float]
    """By process."""


@dataclass(frozen=True, slots=True)
class Growth:
    """One process over the run, in MB."""

    early_mb: float
    """Median of the first tenth after the warm-up."""
    late_mb: float
    """Median of the last tenth."""
    per_thousand_mb: float
    peak_mb: float


def growth(samples: Sequence[Sample]) -> dict[str, Growth]:
    """Return how each process grew from the first to the last tenth of the samples after the warm-up.

    A run shorter than twice the warm-up counts its second half.
    """
    last = samples[-1].answered
    after = [sample for sample in samples if sample.answered >= min(WARM_UP, last // 2)]
    tenth = max(len(after) // 10, 1)
    early, late = after[:tenth], after[-tenth:]
    thousands = float(np.median([s.answered for s in late]) - np.median([s.answered for s in early])) / 1000
    found = {}
    for name in samples[-1].resident_mb:
        first = float(np.median([sample.resident_mb.get(name, np.nan) for sample in early]))
        final = float(np.median([sample.resident_mb.get(name, np.nan) for sample in late]))
        peak = max(sample.resident_mb.get(name, 0.0) for sample in samples)
        found[name] = Growth(first, final, (final - first) / max(thousands, 1e-9), peak)
    return found


def can_tell(samples: Sequence[Sample]) -> bool:
    """Whether the run is long enough for its memory to be judged."""
    return samples[-1].answered >= WARM_UP + LEAST
