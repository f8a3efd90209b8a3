"""Reading many finished answers at once, by the arithmetic that serves (`probes.answer_reading`)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.methods.watches.answering import TokenScores
from probes.answer_reading import AnswersRead, Floats, Rows, WatchBank


class Step(NamedTuple):
    """One token of every answer that has as many."""

    rows: Rows
    """The answers that have the token, `[n]`."""
    levels: Floats
    """Their levels there, `[n, W]`."""
    scores: Floats
    """Their scores so far, `[n, W]`."""


def read_along(bank: WatchBank, answers: Sequence[TokenScores]) -> Iterator[Step]:
    """Read the answers' token scores `[T, W]` side by side, and yield a step for each token of the longest."""
    read, everyone = AnswersRead(bank, len(answers)), np.arange(len(answers))
    read.begin(everyone)
    lengths = np.array([len(answer) for answer in answers], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = np.concatenate([np.empty((0, len(bank.watches)), dtype=np.float32), *answers])
    for token in range(lengths.max(initial=0)):
        rows = everyone[lengths > token]
        levels = read.read(rows, tokens[starts[rows] + token])
        yield Step(rows, levels, read.scores(rows))


def answer_scores(bank: WatchBank, answers: Sequence[TokenScores]) -> npt.NDArray[np.float32]:
    """Return the answers' scores `[N, W]`: minus infinity where no token was read."""
    found = np.full((len(answers), len(bank.watches)), -np.inf)
    for step in read_along(bank, answers):
        found[step.rows] = step.scores
    return found.astype(np.float32)


def tokens_to_crossing(
    bank: WatchBank, answers: Sequence[TokenScores], thresholds: npt.NDArray[np.floating]
) -> npt.NDArray[np.int64]:
    """Return how many tokens of each answer were read when its score rose above `thresholds` `[W]`, `[N, W]`; 0:
    never.
    """
    found = np.zeros((len(answers), len(bank.watches)), dtype=np.int64)
    for token, step in enumerate(read_along(bank, answers), start=1):
        # In the precision in which thresholds were certified.
        crossed = (step.scores.astype(np.float32) > thresholds) & (found[step.rows] == 0)
        found[step.rows] += crossed * token
    return found
