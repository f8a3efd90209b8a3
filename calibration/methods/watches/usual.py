"""What is usual: mean and standard deviation, at each token of an answer, of the levels that harmless answers have
there.

Answers end at different lengths, so late tokens are reached by few. Token p (counted from 1) is measured over its
neighbourhood, the tokens from p / 1.2 to 1.2 p: the first four stand alone, and the later the token, the wider the
neighbourhood, as levels change ever more slowly. A token that fewer than 50 answers reach is taken to be like the last
that 50 reach. Means are pooled over a neighbourhood, and so are variances about each token's own mean.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calibration.methods.watches.along import read_along
from calibration.methods.watches.answering import TokenScores
from probes.answer_reading import Floats, WatchBank

_RATIO = 1.2
_ENOUGH = 50
"""Answers that a standard deviation is measured on: it is then known to about 10 %."""
_LEAST_SHARE, _LEAST = 0.1, 1e-6
"""The least spread, as a share of the token scores' own standard deviation and as a number.

Where all answers begin with the same word their levels hardly differ, and the first that begins otherwise would be
unusual beyond measure."""


def usual_levels(
    bank: WatchBank, answers: Sequence[TokenScores], max_tokens: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return centre and spread `[max_tokens, W]` from harmless answers' token scores `[T, W]`, some token having been
    read.

    `bank` is of unmeasured watches, one for each column.
    """
    counts = np.zeros(max_tokens)
    means, squares = np.zeros((2, max_tokens, len(bank.watches)))
    for token, step in zip(range(max_tokens), read_along(bank, answers), strict=False):
        counts[token] = len(step.rows)
        means[token] = step.levels.mean(axis=0)
        squares[token] = ((step.levels - means[token]) ** 2).sum(axis=0)
    least = np.maximum(_LEAST_SHARE * np.concatenate(answers).std(axis=0, dtype=np.float64), _LEAST)
    centre, spread = np.empty_like(means), np.empty_like(means)
    for token, near in enumerate(neighbourhoods(counts)):
        weights = counts[near, None]
        centre[token] = (weights * means[near]).sum(axis=0) / weights.sum()
        spread[token] = np.maximum(np.sqrt(squares[near].sum(axis=0) / weights.sum()), least)
    return centre.astype(np.float32), spread.astype(np.float32)


def neighbourhoods(counts: Floats) -> list[slice]:
    """Return the tokens that each token is measured over, from how many answers reach each, `[L]`, the first not
    zero.
    """
    last = int(np.count_nonzero(counts >= min(_ENOUGH, counts[0])))
    places = [min(place, last) for place in range(1, len(counts) + 1)]
    return [slice(math.ceil(place / _RATIO) - 1, math.floor(place * _RATIO)) for place in places]
