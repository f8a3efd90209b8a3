"""Streaming moments: count, mean and covariance of vectors that are never held together, in float64.

Two parts are merged by Chan, Golub and LeVeque's update (Stanford STAN-CS-79-773, 1979), of which Welford's is the case
of one vector: exact up to rounding, and stable where the mean is large against the spread, as it is in residual
streams.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known of `count` vectors `[D]`."""

    count: int
    mean: Array
    """`[D]`."""
    scatter: Array
    """Sum of squared deviations from the mean `[D]`, or of their outer products `[D, D]`."""

    @classmethod
    def of(cls, values: npt.NDArray[np.floating], *, covariance: bool = False) -> "Moments":
        """Return the moments of `values` `[n, D]`, n at least 1."""
        exact = values.astype(np.float64)
        mean = exact.mean(axis=0)
        exact -= mean
        return cls(len(exact), mean, exact.T @ exact if covariance else np.square(exact).sum(axis=0))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both parts together."""
        count = self.count + other.count
        gap = other.mean - self.mean
        share = np.multiply.outer(gap, gap) if self.scatter.ndim == 2 else np.square(gap)
        return Moments(
            count,
            self.mean + gap * (other.count / count),
            self.scatter + other.scatter + share * (self.count * other.count / count),
        )

    @property
    def variance(self) -> Array:
        """Variance of each coordinate `[D]`, over `count` and not one less, as scikit-learn has it."""
        return (np.diagonal(self.scatter) if self.scatter.ndim == 2 else self.scatter) / self.count

    @property
    def covariance(self) -> Array:
        """Covariance `[D, D]`, over `count`. Only where outer products were summed."""
        return self.scatter / self.count
