"""Watching answers: reads each one's token scores in the engine as they come, and finds those that cross a threshold.

All that are under way are read at once, in arrays with a row for each. A token's score is known in the step that takes
it in, which is the one after it was sampled. An answer has a row from its first token on: requests that wait have none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from guard.answer_rules import BoundAnswerRules
from guard.verdict import Unscored, Verdict
from probes.answer_reading import AnswersRead, WatchBank
from serving.core.case import Case, Crossing
from serving.wire import AnswerTokens

Judge = Callable[[Case, npt.NDArray[np.float64] | Unscored], Verdict]
"""Takes a case and its answer's scores so far `[W]`, or the reason why it has none."""


class AnswerWatch:
    """The answers of one model, or of one of its adapters, that are being watched."""

    def __init__(self, rules: BoundAnswerRules, bank: WatchBank, columns: slice, capacity: int, judge: Judge) -> None:
        """`columns` are the scores of this model's watches among those of all; `capacity` is how many answers are
        usual.
        """
        self._rules = rules
        self._columns = columns
        self._judge = judge
        self._read = AnswersRead(bank, capacity)
        self._free = list(range(capacity))
        self._begins = np.zeros(capacity, dtype=np.int64)
        self._decided = np.zeros(capacity, dtype=np.int64)

    @property
    def is_idle(self) -> bool:
        """Whether no answer has a row."""
        return len(self._free) == len(self._begins)

    def end(self, case: Case) -> None:
        """Watch the case's answer no longer."""
        case.answer_begin = None
        if case.answer_row is not None:
            self._free.append(case.answer_row)
            case.answer_row = None

    def take_in(self, tokens: AnswerTokens, cases: Sequence[Case], rejected: Mapping[str, int]) -> None:
        """Read a step's tokens of the answers of `cases`; those that crossed one threshold more have a `crossing` then.

        `rejected` says of a request how many of its last tokens are none of its answer's, where any are not.
        """
        places = {request: place for place, request in enumerate(tokens.requests)}
        self.lose([case for case in cases if case.name not in places], Unscored.MISSING)
        read = [case for case in cases if case.name in places]
        own = np.array([places[case.name] for case in read], dtype=np.int64)
        # Where the step's other tokens are the prompt's, all that were rejected are behind them.
        counts = tokens.counts[own] - np.array([rejected.get(case.name, 0) for case in read], dtype=np.int64)
        any_new = counts > 0
        if not any_new.any():
            return
        read = [case for case, new in zip(read, any_new, strict=True) if new]
        rows = np.array([self._row(case) for case in read])
        gap = self._follow(rows, tokens, own[any_new], counts[any_new])
        scores = self._read.scores(rows)
        lost = gap | np.isnan(scores).any(axis=1)
        number = self._rules.first(scores)
        for place in np.flatnonzero(lost | (number < self._decided[rows])):
            self._decided[rows[place]] = number[place]
            if lost[place]:
                self.lose([read[place]], Unscored.MISSING if gap[place] else Unscored.NOT_FINITE)
            else:
                self._cross(read[place], scores[place])

    def lose(self, cases: Iterable[Case], reason: Unscored) -> None:
        """Give answers whose tokens could not be read a verdict for that `reason`, and watch them no longer."""
        for case in cases:
            if case.answer_begin is not None:
                self._cross(case, reason)
                self.end(case)

    def _row(self, case: Case) -> int:
        """Return the answer's row; one that begins gets a row now."""
        if case.answer_row is None:
            if not self._free:
                self._grow()
            row = case.answer_row = self._free.pop()
            self._begins[row], self._decided[row] = case.answer_begin or 0, len(self._rules.rules)
            self._read.begin(np.array([row]))
        return case.answer_row

    def _cross(self, case: Case, reading: npt.NDArray[np.float64] | Unscored) -> None:
        row, begin = case.answer_row, case.answer_begin or 0
        num_tokens = 0 if row is None else int(self._read.counts(np.array([row]))[0])
        case.crossing = Crossing(self._judge(case, reading), num_tokens, begin + num_tokens)

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
