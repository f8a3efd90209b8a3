"""Rules for prompts that do not end as the chat template does: those whose probes are certified for how they end.

A rule that is not has no say on such a prompt. It counts as if it had fired, but for no more than the policy's
`off_template`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from guard.bound_rule import BoundRule
from guard.verdict import Action
from probes.template import Ending


@dataclass(frozen=True, slots=True)
class OtherEndings:
    """What an artifact knows of prompts that end otherwise than with the chat template's tail."""

    benign_scores: Mapping[Ending, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Of harmless requests: the scores of turns that are left open, `[N, K]`, by how the prompts end."""
    certified: Mapping[Ending, Collection[str]] = field(default_factory=dict)
    """The probes that decide on such prompts."""
    read_open: Collection[str] = ()
    """The probes that read a turn which is not closed."""


NO_OTHERS = OtherEndings()


@dataclass(frozen=True, slots=True)
class EndingRules:
    """The rules for turns that are left open in one way."""

    rules: tuple[BoundRule, ...] = ()
    """Most severe first. One whose probes read closed turns alone has its say on those."""
    unread: Action = Action.ALLOW
    """The most severe action of the rules that have no say."""

    def holding(self, scores: Mapping[str, float]) -> BoundRule | None:
        """Return the first rule that fires on a turn's scores; one that asks for another score does not."""
        return next((rule for rule in self.rules if rule.reads <= scores.keys() and rule.holds(scores)), None)

    @classmethod
    def without(cls, rules: Sequence[BoundRule]) -> "EndingRules":
        """Return what holds where none of the `rules` has a say."""
        return cls((), max((rule.action for rule in rules), key=lambda action: action.severity, default=Action.ALLOW))
