"""The training set: what a method may fit on and choose by. It holds no certification or test prompt.

Two divisions of the same prompts. `fit` and `select` are divided at random: for measuring what something does to the
model. `folds` keep whole sources apart: for choosing what generalises, since prompts of one source resemble each other,
and a choice among them rewards whatever they share.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from calibration.fitting.study import Skipped
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import find_refusal_tokens, first_token_log_probs
from calibration.prompts.template import EncodedPrompts
from calibration.recording.moments import Moments
from calibration.recording.places import Where
from calibration.recording.recording import Recording

_SELECT_SHARE = 0.25
_NUM_FOLDS = 4
_FEWEST = 16
"""Prompts of a class that a fold needs, on either side, to fit or to choose by."""
_MOST_ASKED = 128
"""Prompts per class that show how the model refuses; the number of the refusal direction's paper (arXiv 2406.11717)."""
NO_REFUSALS = "the model starts its answers to harmful prompts as it starts all others"
"""Why there are no refusal tokens, in words."""
_SEED = 20_260
_MOST_BYTES = 1 << 30

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)  # without slots, which would leave no room for what is found once
class TrainingSet:
    """Recorded training prompts, split in two: `fit` gives the weights, `select` chooses among them."""

    chat: ChatModel
    prompts: EncodedPrompts
    recording: Recording
    instruction_offset: int
    """Tokens of the chat template after the instruction's last token."""
    fit: Rows
    select: Rows
    partner: ChatModel | None = None
    """The same model before or after its alignment, where there is one: same tokenizer, same shapes."""

    @classmethod
    def split(
        cls,
        chat: ChatModel,
        prompts: EncodedPrompts,
        recording: Recording,
        instruction_offset: int,
        partner: ChatModel | None = None,
    ) -> "TrainingSet":
        """Set aside a quarter of each class, the same one each time."""
        select = set_aside(prompts, np.arange(len(prompts.prompts)), _SELECT_SHARE)
        fit = np.setdiff1d(np.arange(len(prompts.prompts)), select)
        return cls(chat, prompts, recording, instruction_offset, fit, select, partner)

    def folds(self) -> list["TrainingSet"]:
        """Return the same prompts divided anew, up to four times; each prompt is in `select` of at most one fold.

        No source is on both sides of a fold. Where sources are too few for that (see `is_by_source`), prompts are
        divided at random within each class.
        """
        rows = np.sort(np.concatenate([self.fit, self.select]))
        labels, sources = self.harmful[rows], self.sources[rows]
        by_source = StratifiedGroupKFold(_NUM_FOLDS, shuffle=True, random_state=_SEED)
        with warnings.catch_warnings():
            # It warns of a class with fewer sources than folds; such folds are left out here.
            warnings.simplefilter("ignore", UserWarning)
            divided = list(by_source.split(rows, labels, sources)) if len(set(sources)) >= _NUM_FOLDS else []
        usable = [fold for fold in divided if all(_has_both(labels[side]) for side in fold)]
        if not usable:
            usable = _at_random(self.prompts, rows)
        return [replace(self, fit=rows[fit], select=rows[select]) for fit, select in usable]

    @property
    def is_by_source(self) -> bool:
        """Whether the prompts to choose by are of sources that were not fitted on."""
        return not set(self.sources[self.fit]) & set(self.sources[self.select])

    @property
    def sources(self) -> npt.NDArray[np.str_]:
        """Source `[N]` of each training prompt, empty where it names none."""
        return np.array([prompt.source or "" for prompt in self.prompts.prompts])

    @property
    def harmful(self) -> npt.NDArray[np.bool_]:
        """Labels `[N]` of all training prompts."""
        return self.prompts.harmful

    @cached_property
    def refusal_tokens(self) -> tuple[int, ...]:
        """The tokens that start the model's refusals, as fit prompts show them; empty where it does not refuse.

        Found once, by whoever asks first: all that is fitted, measured and studied here speaks of the same refusals.
        """
        sides = [self.sample(self.fit, harmful=label, most=_MOST_ASKED) for label in (False, True)]
        asked = self.prompts.subset(np.concatenate(sides))
        return find_refusal_tokens(first_token_log_probs(self.chat, asked), asked.harmful)

    def require_refusals(self) -> tuple[int, ...]:
        """Return the refusal tokens for a study about refusals. Raises `Skipped` where the model does not refuse."""
        if not self.refusal_tokens:
            raise Skipped(NO_REFUSALS)
        return self.refusal_tokens

    def features(self, layer: int, where: Where, rows: Rows | None = None) -> npt.NDArray[np.float32]:
        """Return `resid_post` of block `layer` at `where`, float32 `[N, D]`, for the prompts `rows`, or for all.

        It is all held: where means, covariances or projections are enough, ask for those.
        """
        return self.recording.features(layer, where, rows)

    def chunks(
        self, layer: int, where: Where, rows: Rows
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
        """Yield the features `[n, D]` and labels `[n]` of the prompts `rows`, piece by piece, in the recording's
        order.
        """
        wanted = np.zeros(len(self.prompts.prompts), dtype=bool)
        wanted[rows] = True
        harmful = self.harmful
        for read, values in self.recording.chunks(layer, where):
            yield values[wanted[read]], harmful[read[wanted[read]]]

    def held(self, rows: Rows, *, blocks: int = 1) -> Rows:
        """Return those of `rows` that a fit may hold in memory together: all, or a sample that keeps the classes'
        shares.

        For fits that pass over their prompts again and again, at so many blocks together. A gigabyte in float64: 32,768
        prompts of an 8B model at one block.
        """
        most = max(_MOST_BYTES // (8 * self.chat.hidden_size * blocks), 2)
        if len(rows) <= most:
            return rows
        share = most / len(rows)
        sides = [(label, int((self.harmful[rows] == label).sum() * share)) for label in (False, True)]
        return np.sort(np.concatenate([self.sample(rows, harmful=label, most=max(count, 1)) for label, count in sides]))

    def project(self, layer: int, where: Where, weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the projection `[N]` on `weight` `[D]`, or `[N, k]` on `[D, k]`, for all training prompts."""
        return self.recording.project(layer, where, weight)

    def moments(self, layer: int, where: Where, rows: Rows, *, covariance: bool = False) -> Sequence[Moments]:
        """Return the moments of the harmless and of the harmful prompts among `rows`, in this order."""
        sides = [rows[self.harmful[rows] == label] for label in (False, True)]
        return self.recording.moments(layer, where, sides, covariance=covariance)

    def sample(self, rows: Rows, *, harmful: bool, most: int) -> Rows:
        """Return at most `most` of `rows` with the given label, the same ones each time."""
        chosen = rows[self.harmful[rows] == harmful]
        return np.sort(np.random.default_rng(_SEED).permutation(chosen)[:most])


def set_aside(prompts: EncodedPrompts, rows: Rows, share: float, seed: int = _SEED) -> Rows:
    """Return a `share` of `rows` of each class, and at least one, as `seed` has it; all copies of a prompt or none."""
    rng, lines, chosen = np.random.default_rng(seed), _lines(prompts), []
    for label in (False, True):
        own = rows[prompts.harmful[rows] == label]
        originals = np.unique(lines[own])
        taken = rng.permutation(originals)[: max(int(len(originals) * share), 1)]
        chosen.append(own[np.isin(lines[own], taken)])
    return np.sort(np.concatenate(chosen))


def _at_random(prompts: EncodedPrompts, rows: Rows) -> list[tuple[Rows, Rows]]:
    """Return the places in `rows` to fit on and to choose by, fold by fold; all copies of a prompt on one side."""
    originals, first, of = np.unique(_lines(prompts)[rows], return_index=True, return_inverse=True)
    labels = prompts.harmful[rows[first]]
    divided = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=_SEED).split(originals, labels)
    return [(np.flatnonzero(np.isin(of, fit)), np.flatnonzero(np.isin(of, select))) for fit, select in divided]


def _lines(prompts: EncodedPrompts) -> npt.NDArray[np.int64]:
    """Return each prompt's line in its file `[N]`: that of the original, where prompts were wrapped."""
    return np.array([prompt.line for prompt in prompts.prompts])


def _has_both(harmful: npt.NDArray[np.bool_]) -> bool:
    return min(int(harmful.sum()), int((~harmful).sum())) >= _FEWEST
