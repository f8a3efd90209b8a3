"""Relative Mahalanobis distance (arXiv 2106.09022): further from benign prompts than from prompts in general.

A vector is projected on the principal components of all prompts, each divided by its spread, and the squared distance
from the benign Gaussian, less that from the Gaussian of all prompts, is the score. The plain distance grows with
whatever is rare, harmful or not; what both Gaussians find far away cancels in the difference. Both covariances are
shrunk as Ledoit and Wolf have it (2004), towards equal variances.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.novelty.massive import Mask
from calibration.recording.places import Where
from probes.errors import CalibrationError
from probes.head import HEADS

_SIZES = (16, 32, 64)
_EXPLAINED = 0.9
"""Share of the variance that the components have to explain, where the largest size allows."""
_LEAST_VARIANCE = 1e-6
"""Of the first component's: what is below is rounding, and dividing by it would make it noise."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Space:
    """Principal components of one block at one place, in units of their spread."""

    layer: int
    where: Where
    weight: Array
    """`[k, D]`, zero at the coordinates left out."""
    explained: float
    """Share of the variance, of the coordinates kept."""

    @classmethod
    def of(
        cls, training: TrainingSet, layer: int, where: Where, rows: Rows, left_out: Mask, size: int | None = None
    ) -> "Space":
        """Return the components of the prompts `rows` without the coordinates `left_out` `[D]`.

        `size` of them, or as few of 16, 32 and 64 as explain 90 % of the variance. Raises `CalibrationError` where
        nothing varies.
        """
        harmless, harmful = training.moments(layer, where, rows, covariance=True)
        kept = np.flatnonzero(~left_out)
        covariance = harmless.merge(harmful).covariance[np.ix_(kept, kept)]
        variances, vectors = (each[..., ::-1] for each in np.linalg.eigh(covariance))
        usable = int((variances > _LEAST_VARIANCE * variances[0]).sum()) if variances[0] > 0 else 0
        if not usable:
            raise CalibrationError(
                f"block {layer} holds the same at {where} for all prompts",
                field="prompts",
                remedy="give prompts that differ in what is asked",
            )
        shares = np.cumsum(variances[:usable]) / variances.clip(min=0).sum()
        wanted = size or next((each for each in _SIZES if shares[min(each, usable) - 1] >= _EXPLAINED), _SIZES[-1])
        count = min(wanted, usable)
        weight = np.zeros((count, len(left_out)))
        weight[:, kept] = (vectors[:, :count] / np.sqrt(variances[:count])).T
        return cls(layer, where, weight, float(shares[count - 1]))

    def project(self, training: TrainingSet) -> Array:
        """Return every training prompt's components `[N, k]`."""
        return training.project(self.layer, self.where, self.weight.T)


@dataclass(frozen=True, slots=True)
class Distance:
    """The two Gaussians, as the head `mahalanobis` takes them."""

    tensors: Mapping[str, Array]

    @classmethod
    def of(cls, benign: Array, everything: Array) -> "Distance":
        """Fit them on the components of benign prompts `[n, k]` and of all prompts `[m, k]`."""
        (mean, precision), (background, background_precision) = _gaussian(benign), _gaussian(everything)
        return cls(
            {
                "head_mean": mean,
                "head_precision": precision,
                "head_background_mean": background,
                "head_background_precision": background_precision,
            }
        )

    def plain(self) -> "Distance":
        """Return the squared distance from benign prompts alone."""
        nothing = np.zeros_like(self.tensors["head_background_precision"])
        return Distance({**self.tensors, "head_background_precision": nothing})

    def __call__(self, components: Array) -> Array:
        """Return the scores `[N]` of components `[N, k]`, by the arithmetic that serves."""
        return HEADS["mahalanobis"].outputs(components, self.tensors)


def _gaussian(components: Array) -> tuple[Array, Array]:
    covariance, _ = ledoit_wolf(components)
    # One prompt many times over has no variance at all: a pseudo-inverse then gives it no say, instead of failing.
    return components.mean(axis=0), np.asarray(np.linalg.pinv(covariance, hermitian=True))
