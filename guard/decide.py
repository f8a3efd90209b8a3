"""Decisions: a policy bound to an artifact, ready to judge scores.

`BoundPolicy` resolves every threshold once, so that a decision is a handful of comparisons on plain floats.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from guard.answer_rules import BoundAnswerRules
from guard.bound_rule import Band, BoundRule, Columns
from guard.policy import Condition, Policy, Rule, TargetFpr
from guard.threshold import certify
from guard.verdict import Action, Unscored, Verdict
from probes.errors import PolicyError, TooFewNegatives


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy whose probes exist and whose thresholds are numbers."""

    policy: Policy
    probes: tuple[str, ...]
    rules: tuple[BoundRule, ...]
    """Most severe first: the first that holds decides."""
    answers: BoundAnswerRules | None = None
    """The rules on answers, where the policy has any."""

    @property
    def idle_rules(self) -> dict[str, str]:
        """Return the rules that can never decide, each with the rule that fires wherever it would and goes before it."""
        idle: dict[str, str] = {}
        for index, rule in enumerate(self.rules):
            before = next((other.name for other in self.rules[:index] if other.covers(rule)), None)
            if before is not None:
                idle[rule.name] = before
        return idle

    @property
    def thresholds(self) -> dict[tuple[str, str], float]:
        """Return the upper thresholds in force, by (rule, score)."""
        rules = (*self.rules, *(self.answers.rules if self.answers else ()))
        return {(rule.name, band.score): band.above for rule in rules for band in rule.bands if band.above > -math.inf}

    def judge(self, scores: Sequence[float] | Unscored, *, tighten: bool = False, shadow: bool = False) -> Verdict:
        """Return the verdict on one prompt's probe `scores`, or on their absence.

        `tighten` makes a flag or a steer a block, as a client may ask for its own request. `shadow` records without
        acting, for a caller to whom the policy grants it.
        """
        began = time.perf_counter()
        unscored = scores if isinstance(scores, Unscored) else None
        named = {} if isinstance(scores, Unscored) else self._named(scores)
        if not all(map(math.isfinite, named.values())):
            unscored, named = Unscored.NOT_FINITE, {}
        rule = None if unscored else next((rule for rule in self.rules if rule.holds(named)), None)
        decision = self.policy.on_unscored if unscored else rule.action if rule else Action.ALLOW
        return self.policy.verdict(
            decision.tightened if tighten else decision,
            named,
            rule=rule.name if rule else None,
            category=rule.category if rule else None,
            unscored=unscored,
            shadow=shadow,
            began=began,
        )

    def firing(self, columns: Columns) -> dict[str, npt.NDArray[np.bool_]]:
        """Return for each rule on which of N prompts it fires; `columns` as `score_columns` gives them."""
        return {rule.name: rule.fires(columns) for rule in self.rules}

    def severities(self, columns: Columns) -> npt.NDArray[np.int8]:
        """Return the severity of the decision on each of N prompts `[N]`, the same that `judge` would make of each."""
        rows = len(next(iter(columns.values())))
        decided = np.zeros(rows, dtype=np.int8)
        for rule in self.rules:
            np.maximum(decided, np.where(rule.fires(columns), rule.action.severity, 0), out=decided, casting="unsafe")
        return decided

    def _named(self, scores: Sequence[float]) -> dict[str, float]:
        named = dict(zip(self.probes, map(float, scores), strict=True))
        return named | {name: _weighted(weights, named) for name, weights in self.policy.combine.items()}


def _weighted(weights: Mapping[str, float], scores: Mapping[str, Any]) -> Any:
    """Return the weighted sum of floats, or of float64 columns: bit for bit the same, so that ties stay ties."""
    total = 0.0
    for probe, weight in weights.items():
        total = total + weight * scores[probe]
    return total


@dataclass(frozen=True, slots=True)
class Watched:
    """What an artifact knows of answers."""

    watches: Sequence[str]
    benign_scores: npt.NDArray[np.float32]
    """Of answers to harmless prompts, `[N, W]`."""
    escalating: Collection[str] = ()
    """The watches of probes that say that something is unusual, and not that it is harmful."""


def bind(
    policy: Policy,
    probes: Sequence[str],
    benign_scores: npt.NDArray[np.float32],
    *,
    escalating: Collection[str] = (),
    steering: Sequence[str] = (),
    digest: str | None = None,
    watched: Watched | None = None,
) -> BoundPolicy:
    """Bind `policy` to an artifact: its `probes`, their `benign_scores` `[N, K]`, its `steering` vectors, its `digest`, and
    what it has for watching answers.

    Probes that are `escalating` say that a prompt is unusual, and not that it is harmful. Raises `PolicyError` for a rule
    that blocks by them alone, for a probe, combination or vector that does not exist, for another artifact than the
    policy names, and for a false-positive rate that N benign prompts cannot certify.
    """
    if policy.artifact and digest and policy.artifact != digest:
        raise PolicyError(
            f"the policy is for artifact {policy.artifact[:12]}…, not {digest[:12]}…",
            field="artifact",
            remedy="serve the artifact that the policy names, or review the policy and update its digest",
        )
    if policy.steering and policy.steering.vector not in steering:
        raise _unknown("steering.vector", policy.steering.vector, "steering vector", steering)
    columns = score_columns(policy, probes, benign_scores)
    combined = {name for name, weights in policy.combine.items() if _only_escalates(weights, escalating)}
    rules = _bound("rules", policy.rules, columns, combined.union(escalating))
    return BoundPolicy(policy, tuple(probes), rules, _bound_answers(policy, watched))


def _bound(section: str, rules: Sequence[Rule], columns: Columns, escalating: Collection[str]) -> tuple[BoundRule, ...]:
    """Return rules whose scores have benign `columns`, most severe first. Raises `PolicyError`."""
    for rule in rules:
        _require_detection(section, rule, escalating)
    return tuple(
        BoundRule(
            rule.name,
            rule.action,
            tuple(_band(f"{section}.{rule.name}.when.{s}", s, c, columns) for s, c in rule.when.items()),
            rule.category,
        )
        for rule in sorted(rules, key=lambda rule: -rule.action.severity)
    )


def _bound_answers(policy: Policy, watched: Watched | None) -> BoundAnswerRules | None:
    if not policy.answer_rules:
        return None
    if watched is None or not watched.watches:
        raise PolicyError(
            "the artifact has no watches, so answers cannot be read",
            field="answer_rules",
            remedy="calibrate with --watch-answers, or remove the section",
        )
    columns = {name: watched.benign_scores[:, index].astype(np.float64) for index, name in enumerate(watched.watches)}
    rules = _bound("answer_rules", policy.answer_rules, columns, watched.escalating)
    return BoundAnswerRules(policy, tuple(watched.watches), rules)


def _require_detection(section: str, rule: Rule, escalating: Collection[str]) -> None:
    """Raise `PolicyError` where a rule blocks, and nothing that it asks about has seen harm."""
    if rule.action is Action.BLOCK and all(score in escalating for score in rule.when):
        raise PolicyError(
            f"blocks by {', '.join(rule.when)} alone, which says that something is unusual and not that it is harmful",
            field=f"{section}.{rule.name}.when",
            remedy="use action 'flag' or 'steer', or add a condition on a probe that detects harm",
        )


def _only_escalates(weights: Mapping[str, float], escalating: Collection[str]) -> bool:
    asked = [probe for probe, weight in weights.items() if weight]
    return bool(asked) and all(probe in escalating for probe in asked)


def score_columns(
    policy: Policy, probes: Sequence[str], scores: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return `scores` `[N, K]` by probe, and the policy's combinations. Raises `PolicyError` for an unknown name."""
    columns = {name: scores[:, index].astype(np.float64) for index, name in enumerate(probes)}
    for name, weights in policy.combine.items():
        columns[name] = _combination(name, weights, columns, probes)
    return columns


def _combination(
    name: str, weights: Mapping[str, float], columns: Columns, probes: Sequence[str]
) -> npt.NDArray[np.float64]:
    if name in columns:
        raise PolicyError("a probe has this name", field=f"combine.{name}", remedy="give the combination another name")
    for probe in weights:
        if probe not in probes:
            raise _unknown(f"combine.{name}", probe, "probe", probes)
    return np.asarray(_weighted(weights, columns))


def _band(field: str, score: str, condition: Condition, columns: Columns) -> Band:
    if score not in columns:
        raise _unknown(field, score, "watch" if field.startswith("answer") else "probe or combination", list(columns))
    lower = _resolved(f"{field}.above", condition.above, columns[score], -math.inf)
    upper = _resolved(f"{field}.below", condition.below, columns[score], math.inf)
    if lower >= upper:
        raise PolicyError(
            f"no score is above {lower:.4g} and below {upper:.4g}", field=field, remedy="lower 'above' or raise 'below'"
        )
    # "Not above" a promised threshold includes the threshold itself, where the rule above it does not fire.
    return Band(score, lower, math.nextafter(upper, math.inf) if isinstance(condition.below, TargetFpr) else upper)


def _resolved(field: str, end: float | TargetFpr | None, benign: npt.NDArray[np.float64], absent: float) -> float:
    if end is None:
        return absent
    if not isinstance(end, TargetFpr):
        return end
    try:
        return certify(benign, end.target_fpr, end.confidence).value
    except TooFewNegatives as error:
        raise PolicyError(error.problem, field=f"{field}.target_fpr", remedy=error.remedy) from error


def _unknown(field: str, name: str, kind: str, known: Sequence[str]) -> PolicyError:
    return PolicyError(
        f"no {kind} is named {name!r}",
        field=field,
        remedy=f"use one of: {', '.join(sorted(known)) or 'none in this artifact'}",
    )
