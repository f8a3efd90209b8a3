"""Readouts: how the token scores of one probe's channels become one value each for the request.

Pure functions on numpy arrays, used by calibration and serving alike, so that both mean the same thing by a score.

All of them are exact however a prompt was computed: in one chunk or many, cold or on a prefix-cache hit. Serving keeps
every token's scores as they are, by KV-cache slot, and reduces them once, when the prompt is finished.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from probes.template import Turn

Scores = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


class Readout(BaseModel):
    """The rule that turns a turn's token scores `[T, C]` of C channels into values.

    `last` reads the token `offset` places before the turn's last one; `mean` and `max` pool all tokens; `ema` is the
    maximum of an exponential moving average and `swim` the maximum of a sliding-window mean (arXiv 2601.04603);
    `softmax` is the mean of a channel weighted by its own softmax. Each gives one value per channel. `attention` (arXiv
    2601.11516) takes channels in pairs, the query logits of a head and then its values, and gives one value per pair:
    the mean of the values, weighted by the softmax of the logits. The paper's MultiMax is `max` of several channels.

    Adding a number to all scores of a channel adds it to the value (of `attention`: to the value channel).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["last", "mean", "max", "ema", "swim", "softmax", "attention"] = "last"
    offset: int = Field(0, ge=0)
    """`last` only: tokens before the turn's last; 0 is the position that predicts the answer's first token."""
    over: Literal["all", "content"] = "all"
    """Which tokens are read, but for `last`: `content` leaves out the chat template's own. A request that goes on, or whose
    template is cut, then has what it had before among its values."""
    alpha: float = Field(0.5, gt=0, le=1)
    """`ema` only: the weight of the newest token."""
    window: int = Field(16, ge=1)
    """`swim` only: tokens averaged."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """`softmax` only: weights are `softmax(s / temperature)`; small ones near the maximum, large ones the mean."""

    @model_validator(mode="after")
    def _offset_belongs_to_last(self) -> Self:
        if self.offset and self.kind != "last":
            raise ValueError(f"offset is for readout 'last', not {self.kind!r}")
        return self

    @model_validator(mode="after")
    def _last_has_its_place(self) -> Self:
        if self.kind == "last" and self.over != "all":
            raise ValueError("readout 'last' reads one token, wherever that is: it has no 'over'")
        return self

    def positions(self, turn: Turn) -> Sequence[int]:
        """Return the positions of the tokens that the readout needs of a turn, in order; a range where it needs all."""
        if self.kind == "last":
            # A turn shorter than the chat template's tail (a raw completion) is read at its first token.
            position = max(turn.stop - 1 - self.offset, turn.start)
            return range(position, position + 1)
        if self.over == "all" or not turn.frame:
            return range(turn.start, turn.stop)
        content = sorted(set(range(turn.start, turn.stop)).difference(turn.frame))
        # A turn that says nothing is read at its last token: every turn has a score.
        return content or range(turn.stop - 1, turn.stop)

    def num_values(self, channels: int) -> int:
        """Return how many values come of `channels` channels."""
        return channels // 2 if self.kind == "attention" else channels

    def reduce(self, scores: Scores) -> Values:
        """Return the values `[V]` of token `scores` `[P, C]` at `positions(turn)`, in order; NaN where a token has none."""
        if self.kind == "last":
            return np.asarray(scores[-1], dtype=np.float64)
        # One channel after another in memory: sums along it are several times as fast.
        channels = np.ascontiguousarray(scores.T)
        if self.kind == "mean":
            return np.asarray(channels.mean(axis=1, dtype=np.float64))
        if self.kind == "max":
            return np.asarray(channels.max(axis=1), dtype=np.float64)
        if self.kind == "ema":
            return np.array([_ema_max(channel, self.alpha) for channel in channels])
        if self.kind == "swim":
            return np.array([_window_max(channel, self.window) for channel in channels])
        exact = scores.astype(np.float64)
        if self.kind == "softmax":
            return WeightedMean.of(exact / self.temperature, exact).value()
        return WeightedMean.of(exact[:, ::2], exact[:, 1::2]).value()


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The softmax-weighted mean of values over some tokens, in a form that merges with that of other tokens.

    Three numbers a value stand for any number of tokens (online softmax, arXiv 1805.02867): the largest logit, the sum of
    `exp(logit - largest)`, and that sum with each term times its token's value.
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


def _ema_max(scores: Scores, alpha: float) -> float:
    level = peak = float(scores[0])
    for score in scores[1:].tolist():
        level += alpha * (score - level)
        peak = max(peak, level)
    # A token without a score makes the level NaN for good, which max() would hide.
    return level if math.isnan(level) else peak


def _window_max(scores: Scores, window: int) -> float:
    sums = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)])
    width = min(window, len(scores))
    return float((sums[width:] - sums[:-width]).max() / width)
