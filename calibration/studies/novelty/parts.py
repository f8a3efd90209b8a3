"""Who takes which part when novelty scores are compared: to learn from, to set the cut by, or to be judged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.novelty.massive import Mask
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS

_MOST_BENIGN, _MOST_JUDGED = 300, 100
"""Prompts that scores may ask for which pass them through a model; 299 is what speaks of 1 %."""
_SEED = 20_260
HARMFUL = "harmful prompts of seen sources"
UNSEEN_HARMFUL, UNSEEN_HARMLESS = "harmful prompts of unseen sources", "harmless prompts of unseen sources"


@dataclass(frozen=True, slots=True)
class PromptGroups:
    """Rows of the training set; no prompt has two parts, except that benign ones are also part of the background."""

    background: Rows
    """Fit prompts of seen sources, both classes."""
    benign: Rows
    """Harmless ones among them."""
    cut: Rows
    """Harmless selection prompts of seen sources."""
    groups: Mapping[str, Rows]
    """Those judged; a group without prompts is not there."""
    unseen: str
    """The sources left out, in words; empty where none could be."""

    @classmethod
    def of(cls, training: TrainingSet) -> "PromptGroups":
        """Divide the prompts, with jailbreak sources left out, or where there are none those of the first fold."""
        out, what = _unseen(training)
        fit, select = training.fit[~out[training.fit]], training.select[~out[training.select]]
        groups = {
            HARMFUL: select[training.harmful[select]],
            UNSEEN_HARMFUL: np.flatnonzero(out & training.harmful),
            UNSEEN_HARMLESS: np.flatnonzero(out & ~training.harmful),
        }
        return cls(
            fit,
            fit[~training.harmful[fit]],
            select[~training.harmful[select]],
            {name: rows for name, rows in groups.items() if len(rows)},
            what,
        )

    def fewer(self) -> "PromptGroups":
        """Return at most 300 benign prompts, 300 to set the cut and 100 of each group, the same ones each time."""
        groups = {name: _sample(rows, _MOST_JUDGED) for name, rows in self.groups.items()}
        return replace(
            self, benign=_sample(self.benign, _MOST_BENIGN), cut=_sample(self.cut, _MOST_BENIGN), groups=groups
        )

    @property
    def judged(self) -> Rows:
        """All prompts whose scores are looked at, ascending."""
        return np.sort(np.concatenate([self.cut, *self.groups.values()]))


def _sample(rows: Rows, most: int) -> Rows:
    return np.sort(np.random.default_rng(_SEED).permutation(rows)[:most])


def _unseen(training: TrainingSet) -> tuple[Mask, str]:
    sources = training.sources
    jailbreaks = np.char.startswith(np.char.lower(sources), "jailbreak")
    first = training.folds()[0]
    named = np.isin(sources, np.unique(sources[first.select])) if first.is_by_source else np.zeros_like(jailbreaks)
    for out, what in ((jailbreaks, "jailbreak sources"), (named, ", ".join(np.unique(sources[named])))):
        if out.any() and _enough_is_left(training, out):
            return out, what
    return np.zeros_like(jailbreaks), ""


def _enough_is_left(training: TrainingSet, out: Mask) -> bool:
    return all(
        len(training.sample(rows[~out[rows]], harmful=label, most=MINIMUM_PER_CLASS)) == MINIMUM_PER_CLASS
        for rows in (training.fit, training.select)
        for label in (False, True)
    )
