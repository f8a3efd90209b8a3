"""Watching answers: reads each one's token scores in the engine as they come, and finds those that cross a threshold.

All that are under way are read at once, in arrays with a row for each. A token's score is known in the step that takes it
in, which is the one after it was sampled. An answer has a row from its first token on: requests that wait have none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from guard.answer_rules import BoundAnswerRules
from guard.verdict import Unscored, Verdict
from probes.answer_reading import AnswersRead, WatchBank
from serving.core.scheduled import scheduled_of
from serving.wire import AnswerTokens


class Crossing(NamedTuple):
    """An answer that crossed a threshold, or that could not be read on."""

    verdict: Verdict
    num_tokens: int
    """How many of its tokens had been read."""
    position: int
    """Of the token behind these."""


Judge = Callable[[str, npt.NDArray[np.float64] | Unscored], Verdict]
"""Takes a request and its answer's scores so far `[W]`, or the reason why it has none."""


class AnswerWatch:
    """The answers of one model, or of one of its adapters, that are being watched."""

    def __init__(self, rules: BoundAnswerRules, bank: WatchBank, columns: slice, capacity: int) -> None:
        """`columns` are the scores of this model's watches among those of all; `capacity` is how many answers are usual."""
        self._rules = rules
        self._columns = columns
        self._read = AnswersRead(bank, capacity)
        self._free = list(range(capacity))
        self._positions: dict[str, int] = {}
        """Of all that are watched: where the answer begins."""
        self._rows: dict[str, int] = {}
        self._begins = np.zeros(capacity, dtype=np.int64)
        self._decided = np.zeros(capacity, dtype=np.int64)

    def __contains__(self, request: str) -> bool:
        """Whether the request's answer is watched."""
        return request in self._positions

    def begin(self, request: str, position: int) -> None:
        """Watch the answer whose first token is at `position`, or is to be."""
        self._positions[request] = position

    def end(self, request: str) -> None:
        """Watch the answer no longer."""
        self._positions.pop(request, None)
        row = self._rows.pop(request, None)
        if row is not None:
            self._free.append(row)

    def asked(self, scheduled: Mapping[str, int]) -> dict[str, int]:
        """Return those of the `scheduled` requests that are watched, with the position of their answers' first tokens."""
        return {request: self._positions[request] for request in scheduled_of(self._positions, scheduled)}

    def take_in(
        self, tokens: AnswerTokens, asked: Sequence[str], rejected: Mapping[str, int], judge: Judge
    ) -> Iterator[tuple[str, Crossing]]:
        """Read a step's tokens of the requests `asked` for; yield a verdict on each answer that crossed one threshold more.

        `rejected` says of a request how many of its last tokens are drafts that were rejected, where any were.
        """
        places = {request: place for place, request in enumerate(tokens.requests)}
        yield from self.lose([request for request in asked if request not in places], Unscored.MISSING, judge)
        own = np.array([places[request] for request in asked if request in places and request in self], dtype=np.int64)
        counts = tokens.counts[own]
        if rejected:
            # Where the step's other tokens are the prompt's, all of these are behind them.
            counts = counts - np.array([rejected.get(tokens.requests[place], 0) for place in own], dtype=np.int64)
        own, counts = own[counts > 0], counts[counts > 0]
        if not len(own):
            return
        names = [tokens.requests[place] for place in own]
        rows = np.array([self._row(name) for name in names])
        gap = self._follow(rows, tokens, own, counts)
        scores = self._read.scores(rows)
        lost = gap | np.isnan(scores).any(axis=1)
        number = self._rules.first(scores)
        for place in np.flatnonzero(lost | (number < self._decided[rows])):
            self._decided[rows[place]] = number[place]
            if lost[place]:
                yield from self.lose([names[place]], _reason(gap[place]), judge)
            else:
                yield names[place], self._crossing(names[place], judge(names[place], scores[place]))

    def lose(self, requests: Sequence[str], reason: Unscored, judge: Judge) -> Iterator[tuple[str, Crossing]]:
        """Yield the verdicts on watched answers among `requests` whose tokens could not be read; they are not watched on."""
        for request in requests:
            if request in self:
                yield request, self._crossing(request, judge(request, reason))
                self.end(request)

    def _row(self, request: str) -> int:
        """Return the answer's row; one that begins gets a row now."""
        if request not in self._rows:
            if not self._free:
                self._grow()
            row = self._rows[request] = self._free.pop()
            self._begins[row], self._decided[row] = self._positions[request], len(self._rules.rules)
            self._read.begin(np.array([row]))
        return self._rows[request]

    def _crossing(self, request: str, verdict: Verdict) -> Crossing:
        row = self._rows.get(request)
        num_tokens = 0 if row is None else int(self._read.counts(np.array([row]))[0])
        return Crossing(verdict, num_tokens, self._positions[request] + num_tokens)

    def _follow(
        self,
        rows: npt.NDArray[np.int64],
        tokens: AnswerTokens,
        own: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Read what is new of each answer, in order; return which of them have a token missing before it, `[n]`."""
        begins = np.cumsum(tokens.counts)[own] - tokens.counts[own]
        # What was read before is read again after a preemption: it is left out.
        old = self._begins[rows] + self._read.counts(rows) - tokens.firsts[own]
        gap = old < 0
        new = np.where(gap, 0, counts - old)
        for turn in range(int(new.max(initial=0))):
            still = np.flatnonzero(new > turn)
            scores = tokens.scores[begins[still] + old[still] + turn, self._columns]
            self._read.read(rows[still], scores)
        return np.asarray(gap)

    def _grow(self) -> None:
        """Make room for as many again: requests that were preempted keep the rows of their half read answers.

        The room stays. It is less than twice what the most answers that were ever under way at once needed.
        """
        more = len(self._begins)
        self._read.grow(more)
        self._free = list(range(more, 2 * more))
        self._begins = np.concatenate([self._begins, np.zeros(more, dtype=np.int64)])
        self._decided = np.concatenate([self._decided, np.zeros(more, dtype=np.int64)])


def _reason(gap: bool) -> Unscored:
    return Unscored.MISSING if gap else Unscored.NOT_FINITE
