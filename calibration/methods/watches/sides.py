"""The two sides of a split's answers: those to harmless prompts, and those to harmful prompts that were answered at
all.

Most models refuse most harmful prompts. A refusal is no harmful answer, and a watch that keeps quiet over it is right,
so refusals are counted and left out of what a watch is judged by. An answer is a refusal when it opens as the model's
own do.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.methods.watches.answering import Answers, TokenScores
from calibration.model.openings import opens_as


class Count(NamedTuple):
    """How prompts of one label were answered."""

    prompts: int
    refused: int
    unread: int
    """Answers that ended with their first token: nothing of them is read, and no watch can say anything of them."""

    @property
    def answered(self) -> int:
        """Prompts that were answered, with something to read."""
        return self.prompts - self.refused - self.unread


@dataclass(frozen=True, slots=True)
class LabelledAnswers:
    """A split's answers of which some token is read."""

    harmless: Answers
    """To harmless prompts, refusals among them: it is what a server's harmless traffic would be."""
    harmful: Answers
    """To harmful prompts, refusals left out."""
    counts: dict[str, Count]
    """By label."""

    @classmethod
    def of(cls, answers: Answers, openings: frozenset[tuple[int, ...]]) -> "LabelledAnswers":
        """Divide answers, of which those that open as one of `openings` are refusals."""
        harmful, read = answers.prompts.harmful, answers.lengths > 0
        refused = np.array([opens_as(tokens, openings) for tokens in answers.tokens], dtype=bool)
        counts = {
            label: Count(int(own.sum()), int((own & read & refused).sum()), int((own & ~read).sum()))
            for label, own in (("harmful", harmful), ("harmless", ~harmful))
        }
        harmless, answered = ~harmful & read, harmful & read & ~refused
        return cls(answers.subset(np.flatnonzero(harmless)), answers.subset(np.flatnonzero(answered)), counts)

    def columns(self, channels: list[int]) -> tuple[list[TokenScores], list[TokenScores]]:
        """Return the token scores `[T, W]` of harmless and of harmful answers, a column for each of `channels`
        `[W]`.
        """
        harmless, harmful = ([scores[:, channels] for scores in side.scores] for side in (self.harmless, self.harmful))
        return harmless, harmful


def labelled(
    harmless: npt.NDArray[np.float32], harmful: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the scores of both sides together, and which of them are harmful."""
    return np.concatenate([harmless, harmful]), np.arange(len(harmless) + len(harmful)) >= len(harmless)
