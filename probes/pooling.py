"""Poolings: how a readout makes one value of a channel's token scores, on arrays and as a graph for gradients.

`values` takes the scores `[P, C]` of the tokens that the readout reads, in order, and returns float64 `[V]`, NaN
where a token has no score. `graph` is the same on PyTorch tensors. Neither imports torch: deciding needs none.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from probes.readout import Readout

Scores = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


class Pooling(Protocol):
    """One kind of readout."""

    channels_a_value: int
    """How many channels one value is made of: `V = C / channels_a_value`."""
    reads_one_token: bool
    """Whether it reads one token of a turn, and not all."""

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return the values `[V]` of token scores `[P, C]`."""
        ...

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return the same, float32, so that gradients pass."""
        ...


class Last:
    """The one token that is read."""

    channels_a_value, reads_one_token = 1, True

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return the scores of that token."""
        return np.asarray(scores[-1], dtype=np.float64)

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return the scores of that token."""
        return scores[-1]


class Mean:
    """The mean."""

    channels_a_value, reads_one_token = 1, False

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return each channel's mean."""
        return np.asarray(_by_channel(scores).mean(axis=1, dtype=np.float64))

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return each channel's mean."""
        return scores.mean(dim=0)


class Max:
    """The maximum. Of several channels it is MultiMax (arXiv 2601.11516)."""

    channels_a_value, reads_one_token = 1, False

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return each channel's maximum."""
        return np.asarray(_by_channel(scores).max(axis=1), dtype=np.float64)

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return each channel's maximum."""
        return scores.amax(dim=0)


class Ema:
    """The maximum of an exponential moving average (arXiv 2601.04603)."""

    channels_a_value, reads_one_token = 1, False

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return the highest level of each channel."""
        return np.array([self._highest(channel, readout.alpha) for channel in _by_channel(scores)])

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return the highest level of each channel."""
        level = peak = scores[0]
        for score in scores[1:]:
            level = level + readout.alpha * (score - level)
            peak = peak.maximum(level)
        return peak

    def _highest(self, scores: Scores, alpha: float) -> float:
        level = peak = float(scores[0])
        for score in scores[1:].tolist():
            level += alpha * (score - level)
            peak = max(peak, level)
        # A token without a score makes the level NaN for good, which max() would hide.
        return level if math.isnan(level) else peak


class Swim:
    """The maximum of a sliding-window mean (arXiv 2601.04603)."""

    channels_a_value, reads_one_token = 1, False

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return the highest mean of each channel's windows."""
        return np.array([self._highest(channel, readout.window) for channel in _by_channel(scores)])

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return the highest mean of each channel's windows."""
        return scores.unfold(0, min(readout.window, len(scores)), 1).mean(dim=2).amax(dim=0)

    def _highest(self, scores: Scores, window: int) -> float:
        sums = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)])
        width = min(window, len(scores))
        return float((sums[width:] - sums[:-width]).max() / width)


class Softmax:
    """The mean of a channel, weighted by the softmax of its own scores."""

    channels_a_value, reads_one_token = 1, False

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return each channel's weighted mean."""
        exact = scores.astype(np.float64)
        return WeightedMean.of(exact / readout.temperature, exact).value()

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return each channel's weighted mean."""
        return ((scores / readout.temperature).softmax(dim=0) * scores).sum(dim=0)


class Attention:
    """The mean of every second channel, weighted by the softmax of the one before it (arXiv 2601.11516)."""

    channels_a_value, reads_one_token = 2, False

    def values(self, scores: Scores, readout: "Readout") -> Values:
        """Return each head's weighted mean."""
        exact = scores.astype(np.float64)
        return WeightedMean.of(exact[:, ::2], exact[:, 1::2]).value()

    def graph(self, scores: "torch.Tensor", readout: "Readout") -> "torch.Tensor":
        """Return each head's weighted mean."""
        return (scores[:, ::2].softmax(dim=0) * scores[:, 1::2]).sum(dim=0)


POOLINGS: dict[str, Pooling] = {
    "last": Last(),
    "mean": Mean(),
    "max": Max(),
    "ema": Ema(),
    "swim": Swim(),
    "softmax": Softmax(),
    "attention": Attention(),
}
"""By `Readout.kind`."""


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The softmax-weighted mean of values over some tokens, in a form that merges with that of other tokens.

    Three numbers a value stand for any number of tokens (online softmax, arXiv 1805.02867): the largest logit, the
    sum of `exp(logit - largest)`, and that sum with each term times its token's value.
    """

    peak: Values
    mass: Values
    total: Values

    @classmethod
    def of(cls, logits: Values, values: Values) -> Self:
        """Take in one or more tokens: `logits` and `values` `[P, V]`."""
        peak = logits.max(axis=0)
        weights = np.exp(logits - peak)
        return cls(peak, weights.sum(axis=0), (weights * values).sum(axis=0))

    def merge(self, other: Self) -> Self:
        """Return the same as if the tokens of both had been taken in at once."""
        peak = np.maximum(self.peak, other.peak)
        own, theirs = np.exp(self.peak - peak), np.exp(other.peak - peak)
        return type(self)(peak, self.mass * own + other.mass * theirs, self.total * own + other.total * theirs)

    def value(self) -> Values:
        """Return the weighted means `[V]`."""
        return self.total / self.mass


def _by_channel(scores: Scores) -> Scores:
    # One channel after another in memory: sums along it are several times as fast.
    return np.ascontiguousarray(scores.T)
