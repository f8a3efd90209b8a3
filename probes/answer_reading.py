"""Reading answers: how unusual a probe's token scores have become along an answer, token by token.

Pure arithmetic on numpy arrays, many answers at once, used by calibration and serving alike. At answer token t a watch
has a level, the moving mean of its probe's token scores so far. Harmless answers' levels scatter much at their
beginning and little later, so a level is measured by theirs at the same token: `z = (level - centre[t]) / spread[t]`.
The answer's score is the greatest z so far. It only ever rises, so that a threshold on it is a promise on whole
answers, of any length up to the one that was calibrated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from probes.manifest import Watch

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WatchBank:
    """W watches together, ready to read answers."""

    watches: tuple[Watch, ...]
    centre: Floats
    """Mean level of harmless answers at each token, `[L, W]`, L being the longest that any was calibrated for."""
    spread: Floats
    """Standard deviation of these levels, `[L, W]`."""

    @classmethod
    def of(cls, watches: Sequence[Watch], tensors: Mapping[str, torch.Tensor]) -> "WatchBank":
        """Lay out `watches`, whose `tensors` are named and shaped as in an artifact."""
        longest = max((watch.max_tokens for watch in watches), default=1)

        def side_by_side(name: str) -> Floats:
            columns = [tensors[f"watch.{watch.name}.{name}"].double().numpy() for watch in watches]
            # Past what it was calibrated for, a watch goes by its last token.
            padded = [np.pad(column, (0, longest - len(column)), mode="edge") for column in columns]
            return np.stack(padded, axis=1) if padded else np.empty((longest, 0))

        return cls(tuple(watches), side_by_side("centre"), side_by_side("spread"))

    @classmethod
    def unmeasured(cls, watches: Sequence[Watch]) -> "WatchBank":
        """Lay out watches that no harmless answers were measured for: z is the level itself."""
        return cls(tuple(watches), np.zeros((1, len(watches))), np.ones((1, len(watches))))

    @property
    def names(self) -> tuple[str, ...]:
        """The watches' names `[W]`."""
        return tuple(watch.name for watch in self.watches)


class AnswersRead:
    """What is known of up to `capacity` answers that are being read, one a row."""

    def __init__(self, bank: WatchBank, capacity: int) -> None:
        readouts = [watch.readout for watch in bank.watches]
        self._bank = bank
        self._averages = np.array([readout.kind == "ema" for readout in readouts], dtype=bool)
        self._alphas = np.array([readout.alpha for readout in readouts])
        self._windows = np.array(
            [1 if readout.kind == "ema" else readout.window for readout in readouts], dtype=np.int64
        )
        shape = (capacity, len(readouts))
        self._counts = np.zeros(capacity, dtype=np.int64)
        self._averaged, self._sums, self._peaks = np.zeros(shape), np.zeros(shape), np.empty(shape)
        self._recent = np.zeros((*shape, self._windows.max(initial=1)))
        self._columns = np.arange(len(readouts))

    def grow(self, more: int) -> None:
        """Make room for `more` answers."""
        for name in ("_counts", "_averaged", "_sums", "_peaks", "_recent"):
            held = getattr(self, name)
            setattr(self, name, np.concatenate([held, np.zeros((more, *held.shape[1:]), held.dtype)]))

    def begin(self, rows: Rows) -> None:
        """Begin new answers at `rows`."""
        self._counts[rows], self._sums[rows], self._recent[rows] = 0, 0.0, 0.0
        self._peaks[rows] = -np.inf

    def read(self, rows: Rows, scores: npt.NDArray[np.floating]) -> Floats:
        """Read each answer's next token: `scores` `[n, W]` for distinct `rows` `[n]`.

        Returns the levels `[n, W]` there. A token without a score (NaN) leaves its answer without one, to its end.
        """
        exact, counts = scores.astype(np.float64), self._counts[rows]
        levels = np.where(self._averages, self._average(rows, counts, exact), self._windowed(rows, counts, exact))
        place = np.minimum(counts, len(self._bank.centre) - 1)
        unusual = (levels - self._bank.centre[place]) / self._bank.spread[place]
        self._peaks[rows] = np.maximum(self._peaks[rows], unusual)
        self._counts[rows] = counts + 1
        return levels

    def counts(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return how many tokens of the answers were read, `[n]`."""
        return self._counts[rows]

    def scores(self, rows: Rows) -> Floats:
        """Return the answers' scores so far `[n, W]`: minus infinity before the first token, NaN once one had no
        score.
        """
        return self._peaks[rows]

    def _average(self, rows: Rows, counts: Rows, scores: Floats) -> Floats:
        before = np.where(counts[:, None] > 0, self._averaged[rows], scores)
        self._averaged[rows] = before + self._alphas * (scores - before)
        return self._averaged[rows]

    def _windowed(self, rows: Rows, counts: Rows, scores: Floats) -> Floats:
        place = rows[:, None], self._columns, counts[:, None] % self._windows
        self._sums[rows] += scores - self._recent[place]
        self._recent[place] = scores
        return np.asarray(self._sums[rows] / np.minimum(counts[:, None] + 1, self._windows))
