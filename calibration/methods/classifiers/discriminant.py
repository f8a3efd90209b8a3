"""Linear discriminant analysis that holds two covariances, and never the prompts.

Per class the covariance is shrunk as Ledoit and Wolf have it ("A well-conditioned estimator for large-dimensional
covariance matrices", 2004), on standardised features. Their shrinkage needs, beside moments, the sum of fourth powers
of the vectors' norms, which needs the moments: so the features are passed over twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.fitting.linear import Linear
from calibration.recording.moments import Array, Moments
from probes.errors import CalibrationError

Chunks = Callable[[], Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]]
"""Yields features `[n, D]` and labels `[n]`, the same at each call."""


def fit_lda(chunks: Chunks) -> Linear:
    """Return the discriminant with the mean of both classes' shrunk covariances, classes weighted equally.

    Raises `CalibrationError` where a class has no prompt.
    """
    harmless, harmful = (_Standardised.of(_moments(chunks, label)) for label in (False, True))
    covariance = (harmless.shrunk(chunks, label=False) + harmful.shrunk(chunks, label=True)) / 2
    gap = harmful.moments.mean - harmless.moments.mean
    # Least squares and not a solver: a feature that never varies leaves the covariance singular.
    weight = np.asarray(np.linalg.lstsq(covariance, gap, rcond=None)[0], dtype=np.float64)
    return Linear(weight, float(-weight @ (harmless.moments.mean + harmful.moments.mean) / 2))


def fit_lda_held(features: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_]) -> Linear:
    """Return the same discriminant of features `[N, D]` with labels `[N]` that are in memory already."""
    return fit_lda(lambda: iter([(features, harmful)]))


@dataclass(frozen=True, slots=True)
class _Standardised:
    """A class's moments, and the standard deviations `[D]` by which its features are divided."""

    moments: Moments
    scale: Array

    @classmethod
    def of(cls, moments: Moments) -> "_Standardised":
        scale = np.sqrt(moments.variance)
        return cls(moments, np.where(scale == 0, 1.0, scale))

    def shrunk(self, chunks: Chunks, *, label: bool) -> Array:
        """Return the class's covariance `[D, D]`, shrunk towards equal variances of its standardised features."""
        correlation = self.moments.covariance / np.multiply.outer(self.scale, self.scale)
        level = float(np.trace(correlation)) / len(correlation)
        share = self._shrinkage(correlation, level, self._fourth_powers(chunks, label=label))
        shrunk = (1 - share) * correlation + share * level * np.eye(len(correlation))
        return np.asarray(shrunk * np.multiply.outer(self.scale, self.scale))

    def _shrinkage(self, correlation: Array, level: float, fourth_powers: float) -> float:
        """Return their `b^2 / d^2`: the error of the covariance against its distance from its target."""
        size, count = len(correlation), self.moments.count
        spread = float(np.square(correlation).sum())
        distance = (spread - size * level**2) / size
        error = min((fourth_powers / count - spread) / (size * count), distance)
        return error / distance if error > 0 else 0.0

    def _fourth_powers(self, chunks: Chunks, *, label: bool) -> float:
        """Return the sum over the class's prompts of `|z|^4`, z their standardised features."""
        norms = (
            np.square((values[harmful == label] - self.moments.mean) / self.scale).sum(axis=1)
            for values, harmful in chunks()
        )
        return float(sum(np.square(each).sum() for each in norms))


def _moments(chunks: Chunks, label: bool) -> Moments:
    found: Moments | None = None
    for values, harmful in chunks():
        chosen = values[harmful == label]
        if len(chosen):
            part = Moments.of(chosen, covariance=True)
            found = part if found is None else found.merge(part)
    if found is None:
        raise CalibrationError("a class holds no prompt", field="prompts", remedy="give prompts of both classes")
    return found
