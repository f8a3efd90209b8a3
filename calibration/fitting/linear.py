"""A linear reading of features, as every classifier is folded into."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear reading `x . weight + bias`, `weight` float64 `[D]`."""

    weight: npt.NDArray[np.float64]
    bias: float

    def __call__(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return logits `[N]` of features `[N, D]`."""
        return np.asarray(features.astype(np.float64) @ self.weight + self.bias)
