"""Recorded decisions judged anew, all at once, by rules that may be any others than they were made by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import numpy as np
import numpy.typing as npt

from guard.bound_rule import BoundRule, Columns
from guard.decide import BoundPolicy
from guard.tuning.recent import Objects, Recent
from guard.verdict import Action
from probes.errors import PolicyError

_ACTIONS = np.array(list(Action), dtype=object)


class LeftOut(StrEnum):
    """Why a recorded decision cannot be judged anew."""

    ANSWER = "answer"
    """It is about an answer, which other rules read."""
    UNSCORED = "unscored"
    """It has no scores: it was decided by `on_unscored`, `off_template` or `on_media`."""
    OTHER_SCORES = "other_scores"
    """It lacks a score of a probe that the policy's artifact has: its last turn was left open, or it was scored by
    another artifact, such as an adapter's."""
    NOT_FINITE = "not_finite"
    """A score is infinite, or a combination of its scores is no number."""


WHY: Mapping[LeftOut, str] = {
    LeftOut.ANSWER: "about an answer, which these rules do not read",
    LeftOut.UNSCORED: "without scores",
    LeftOut.OTHER_SCORES: "without a score of every probe: an open last turn, an adapter, or another artifact",
    LeftOut.NOT_FINITE: "with a score that is no finite number",
}
"""Each reason in words, for people."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules whose thresholds are numbers, with what it takes to judge recorded scores by them."""

    probes: tuple[str, ...]
    """Whose scores a decision must have."""
    rules: tuple[BoundRule, ...]
    """Most severe first: the first that fires decides."""
    combine: Mapping[str, Mapping[str, float]]
    """Weights of the policy's combinations."""

    @classmethod
    def of(cls, bound: BoundPolicy) -> Self:
        """Return the rules of a bound policy for prompts that end as the chat template does."""
        return cls(bound.probes, bound.rules, bound.policy.combine)

    def moved(self, rule: str, score: str, above: float) -> Self:
        """Return the same rules but for one threshold: the `above` of a rule's condition on a score.

        Raises `PolicyError` where no rule of that name asks for that score to be above something.
        """
        found = [each for each in self.rules if each.name == rule and score in each.reads]
        if not found:
            raise PolicyError(
                f"no rule {rule!r} has a condition on {score!r}",
                field=f"rules.{rule}.when.{score}",
                remedy="name a rule of the policy, and a score that it reads",
            )
        bands = tuple(replace(band, above=above) if band.score == score else band for band in found[0].bands)
        changed = replace(found[0], bands=bands)
        return replace(self, rules=tuple(changed if each.name == rule else each for each in self.rules))


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What rules make of N decisions. Those that cannot be judged anew are `allow` here: `counted` says which."""

    severities: npt.NDArray[np.int8]
    """`[N]`: `Action.severity` of the decision."""
    deciding: Objects
    """`[N]`: the name of the rule that decided, None where none fired."""
    counted: npt.NDArray[np.bool_]
    """`[N]`: which decisions could be judged anew."""
    left_out: Mapping[LeftOut, int]
    """How many could not, by reason: only those that there are."""

    @property
    def actions(self) -> Objects:
        """`[N]` of `Action`."""
        return np.asarray(_ACTIONS[self.severities])


def judge(recent: Recent, rules: Rules) -> Judged:
    """Judge recorded decisions by `rules`, as `BoundPolicy.judge` would a prompt of one turn with the same scores.

    The store has one set of scores of each decision: of the turn that called for most under the policy of that time.
    Other turns are not known, nor how many there were, so that milder rules may really find more in them.
    """
    columns = columns_for(recent, rules)
    reasons = _reasons(recent, rules, columns)
    counted = np.logical_not(np.logical_or.reduce(list(reasons.values())))
    severities, deciding = judge_columns(columns, rules, len(recent))
    severities[~counted], deciding[~counted] = 0, None
    numbers = {reason: int(np.count_nonzero(rows)) for reason, rows in reasons.items()}
    return Judged(severities, deciding, counted, {reason: number for reason, number in numbers.items() if number})


def judge_columns(columns: Columns, rules: Rules, count: int) -> tuple[npt.NDArray[np.int8], Objects]:
    """Return, for scores `[count]` by name, severities `[count]` and the names of the rules that decide `[count]`."""
    severities, deciding = np.zeros(count, dtype=np.int8), np.full(count, None, dtype=object)
    for rule in reversed(rules.rules):  # the first that fires has the last word
        fired = rule.fires(columns)
        severities[fired], deciding[fired] = rule.action.severity, rule.name
    return severities, deciding


def columns_for(recent: Recent, rules: Rules) -> dict[str, npt.NDArray[np.float64]]:
    """Return scores `[N]` of the probes that rules read, and of their combinations: computed, whatever was recorded.

    A probe that no decision has a score of is NaN throughout.
    """
    absent = np.full(len(recent), np.nan)
    columns = {name: recent.columns.get(name, absent) for name in rules.probes}
    combined = {}
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number is left out below
        for name, weights in rules.combine.items():
            # In the order of `guard.decide`, so that ties stay ties.
            total = np.zeros(len(recent))
            for probe, weight in weights.items():
                total = total + weight * columns[probe]
            combined[name] = total
    return columns | combined


def _reasons(recent: Recent, rules: Rules, columns: Columns) -> dict[LeftOut, npt.NDArray[np.bool_]]:
    """Return the rows that each reason leaves out `[N]`: the first reason of each decision alone."""
    answers = recent.judged == "answer"
    has_any = np.zeros(len(recent), dtype=bool)
    for column in recent.columns.values():
        has_any |= ~np.isnan(column)
    probes = [columns[name] for name in rules.probes]
    lacks = np.logical_or.reduce([np.isnan(column) for column in probes]) if probes else ~has_any
    odd = np.logical_or.reduce([~np.isfinite(column) for column in columns.values()])
    first: dict[LeftOut, npt.NDArray[np.bool_]] = {}
    rest = np.ones(len(recent), dtype=bool)
    for reason, rows in (
        (LeftOut.ANSWER, answers),
        (LeftOut.UNSCORED, ~has_any),
        (LeftOut.OTHER_SCORES, lacks),
        (LeftOut.NOT_FINITE, odd),
    ):
        first[reason] = rest & rows
        rest &= ~rows
    return first
