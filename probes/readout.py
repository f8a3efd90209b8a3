"""Readouts: how one probe's token scores become the request's score.

Pure functions on numpy arrays, used by calibration and serving alike, so that both mean the same thing by a score.
"""

import math
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Scores = npt.NDArray[np.float32]


class Readout(BaseModel):
    """The rule that turns token scores `[T]` into one number.

    `last` reads the token `offset` places before the prompt's last one; `mean` and `max` pool all tokens; `ema` is the
    maximum of an exponential moving average and `swim` the maximum of a sliding-window mean (arXiv 2601.04603).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["last", "mean", "max", "ema", "swim"] = "last"
    offset: int = Field(0, ge=0)
    """`last` only: tokens before the prompt's last; 0 is the position that predicts the first output token."""
    alpha: float = Field(0.5, gt=0, le=1)
    """`ema` only: the weight of the newest token."""
    window: int = Field(16, ge=1)
    """`swim` only: tokens averaged."""

    @model_validator(mode="after")
    def _offset_belongs_to_last(self) -> Self:
        if self.offset and self.kind != "last":
            raise ValueError(f"offset is for readout 'last', not {self.kind!r}")
        return self

    def positions(self, num_tokens: int) -> range:
        """Return the token positions that the readout needs from a prompt of `num_tokens` tokens."""
        if self.kind != "last":
            return range(num_tokens)
        # A prompt shorter than the chat template's tail (a raw completion) is read at its first token.
        position = max(num_tokens - 1 - self.offset, 0)
        return range(position, position + 1)

    def reduce(self, scores: Scores) -> float:
        """Return the request's score from token `scores` `[P]` at `positions(T)`, in order."""
        if self.kind == "last":
            return float(scores[-1])
        if self.kind == "mean":
            return float(scores.mean(dtype=np.float64))
        if self.kind == "max":
            return float(scores.max())
        if self.kind == "ema":
            return _ema_max(scores, self.alpha)
        return _window_max(scores, self.window)


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
