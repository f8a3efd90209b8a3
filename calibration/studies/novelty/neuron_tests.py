"""Two tests of a prompt's neurons against those of benign prompts, without a gradient.

Both look at each neuron in units of its own spread, so a neuron that is massive has one voice like every other.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

_BINS = 50
_RARE = 0.01
"""A bin that holds a smaller share of the benign prompts is rarely covered."""
_TAIL = 0.005
"""Share of the benign prompts beyond either end of the bins: one extreme prompt must not make all bins wide."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Neuron activation coverage (arXiv 2306.02879), its neuron states being activations and not gradients."""

    low: Array
    """Where each neuron's bins begin `[k]`, and their `width` `[k]`."""
    width: Array
    rare: npt.NDArray[np.bool_]
    """Bins `[k, 50]` that benign prompts rarely reach."""

    @classmethod
    def of(cls, benign: Values) -> "Coverage":
        """Learn from the neurons `[N, k]` of benign prompts."""
        low, high = np.quantile(benign.astype(np.float64), [_TAIL, 1 - _TAIL], axis=0)
        empty = cls(low, (high - low) / _BINS, np.zeros((benign.shape[1], _BINS), dtype=bool))
        places, inside = empty._places(benign)
        neurons = np.broadcast_to(np.arange(benign.shape[1]), benign.shape)
        counts = np.bincount((neurons * _BINS + places)[inside], minlength=benign.shape[1] * _BINS)
        return cls(low, empty.width, counts.reshape(-1, _BINS) < _RARE * len(benign))

    def __call__(self, neurons: Values) -> Array:
        """Return for each prompt `[N]` the share of its neurons `[N, k]` that are where benign prompts rarely are."""
        places, inside = self._places(neurons)
        return np.asarray((self.rare[np.arange(neurons.shape[1]), places] | ~inside).mean(axis=1))

    def _places(self, neurons: Values) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return each value's bin, and whether it lies within any. A neuron that never varied has one value within."""
        offset = neurons.astype(np.float64) - self.low
        inside = (offset >= 0) & (offset <= self.width * _BINS)
        places = np.floor(np.divide(offset, self.width, out=np.zeros_like(offset), where=inside & (self.width > 0)))
        return places.clip(0, _BINS - 1).astype(np.int64), inside


@dataclass(frozen=True, slots=True)
class KeySpaceBox:
    """Key-Space Detection: the box `mean ± multiplier * spread` that just holds every benign prompt's FFN keys."""

    mean: Array
    """`[k]`."""
    spread: Array
    multiplier: float
    """The smallest that holds them all. No search is needed for it: it is the largest offset in units of the spread."""

    @classmethod
    def of(cls, benign: Values) -> "KeySpaceBox":
        """Learn from the neurons `[N, k]` of benign prompts, of which at least one varies."""
        exact = benign.astype(np.float64)
        box = cls(exact.mean(axis=0), exact.std(axis=0), 1.0)
        return cls(box.mean, box.spread, float(box(benign).max()))

    def __call__(self, neurons: Values) -> Array:
        """Return for each prompt `[N]` how large the box must be to hold its neurons `[N, k]`: above 1 it is outside.

        Neurons that never varied are left out: they have no unit.
        """
        varies = self.spread > 0
        offsets = np.abs(neurons.astype(np.float64) - self.mean)[:, varies] / self.spread[varies]
        return np.asarray(offsets.max(axis=1) / self.multiplier)
