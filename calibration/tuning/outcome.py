"""Outcomes: what a policy would do to the prompts at hand, in shares with their intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibration.fitting.metrics import rate
from guard.bound_rule import Columns
from guard.decide import BoundPolicy
from guard.verdict import Action
from probes.manifest import Rate


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """A policy's decisions on one group of prompts."""

    group: str
    count: int
    decisions: dict[Action, Rate]
    """Share of the group that gets each action."""
    interfered: Rate
    """Share that is flagged, steered or blocked."""
    rules: dict[str, Rate]
    """Share on which each rule fires."""


def outcomes(bound: BoundPolicy, groups: Mapping[str, Columns]) -> dict[str, GroupOutcome]:
    """Return what `bound` would do to each group of prompts, given by their scores. Empty groups are left out.

    Of the sample that set a threshold, the share above it is m of n by construction; the true rate is then distributed
    as Beta(m + 1, n - m) where scores have no ties, which lies within the exact interval that is given here.
    """
    return {name: _outcome(name, bound, columns) for name, columns in groups.items() if _size(columns)}


def precision(benign: GroupOutcome, harmful: GroupOutcome, prevalence: float) -> float:
    """Return which share of what a policy flags, steers or blocks is harmful, where the share `prevalence` of traffic
    is.
    """
    right, wrong = prevalence * harmful.interfered.value, (1 - prevalence) * benign.interfered.value
    return right / (right + wrong) if right + wrong else 0.0


def _outcome(name: str, bound: BoundPolicy, columns: Columns) -> GroupOutcome:
    severities, count = bound.severities(columns), _size(columns)
    return GroupOutcome(
        name,
        count,
        {action: rate(int((severities == action.severity).sum()), count) for action in Action},
        rate(int((severities > 0).sum()), count),
        {rule: rate(int(np.count_nonzero(fired)), count) for rule, fired in bound.firing(columns).items()},
    )


def _size(columns: Columns) -> int:
    return len(next(iter(columns.values())))
