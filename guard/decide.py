"""Decisions: a policy bound to an artifact, ready to judge scores.

`BoundPolicy` resolves every threshold once, so that a decision is a handful of comparisons on plain floats.
"""

import math
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from guard.bound_rule import Band, BoundRule, Columns
from guard.policy import Condition, Policy, Rule, TargetFpr
from guard.threshold import certify
from guard.verdict import Action, Mode, Unscored, Verdict
from probes.errors import PolicyError, TooFewNegatives


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy whose probes exist and whose thresholds are numbers."""

    policy: Policy
    probes: tuple[str, ...]
    rules: tuple[BoundRule, ...]
    """Most severe first: the first that holds decides."""

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
        return {
            (rule.name, band.score): band.above for rule in self.rules for band in rule.bands if band.above > -math.inf
        }

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
        if tighten and decision in (Action.FLAG, Action.STEER):
            decision = Action.BLOCK
        mode = Mode.SHADOW if shadow else self.policy.mode
        return Verdict(
            decision=decision,
            action=decision if mode is Mode.ENFORCE else Action.ALLOW,
            mode=mode,
            scores=named,
            policy=self.policy.label,
            event_id=f"fge_{secrets.token_hex(12)}",
            rule=rule.name if rule else None,
            unscored=unscored,
            decision_seconds=time.perf_counter() - began,
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


def bind(
    policy: Policy,
    probes: Sequence[str],
    benign_scores: npt.NDArray[np.float32],
    *,
    escalating: Collection[str] = (),
    steering: Sequence[str] = (),
    digest: str | None = None,
) -> BoundPolicy:
    """Bind `policy` to an artifact: its `probes`, their `benign_scores` `[N, K]`, its `steering` vectors and its `digest`.

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
    for rule in policy.rules:
        _require_detection(rule, policy, escalating)
    rules = tuple(
        BoundRule(
            rule.name,
            rule.action,
            tuple(_band(f"rules.{rule.name}.when.{s}", s, c, columns) for s, c in rule.when.items()),
        )
        for rule in sorted(policy.rules, key=lambda rule: -rule.action.severity)
    )
    return BoundPolicy(policy, tuple(probes), rules)


def _require_detection(rule: Rule, policy: Policy, escalating: Collection[str]) -> None:
    """Raise `PolicyError` where a rule blocks, and nothing that it asks about has seen harm."""
    if rule.action is not Action.BLOCK:
        return
    combined = {name for name, weights in policy.combine.items() if _only_escalates(weights, escalating)}
    if all(score in combined or score in escalating for score in rule.when):
        raise PolicyError(
            f"blocks by {', '.join(rule.when)} alone, which says that a prompt is unusual and not that it is harmful",
            field=f"rules.{rule.name}.when",
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
        raise _unknown(field, score, "probe or combination", list(columns))
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
