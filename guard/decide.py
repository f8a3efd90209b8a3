"""Decisions: a policy bound to an artifact, ready to judge scores.

`BoundPolicy` resolves every threshold once, so that a decision is a handful of comparisons on plain floats.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from guard.answer_rules import BoundAnswerRules
from guard.bound_rule import Band, BoundRule, Columns
from guard.endings import NO_OTHERS, EndingRules, OtherEndings
from guard.policy import Condition, Policy, Rule, TargetFpr
from guard.threshold import certify
from guard.verdict import Action, Unscored, Verdict
from probes.errors import PolicyError, TooFewNegatives
from probes.template import Ending

_NO_RULES = EndingRules()


@dataclass(frozen=True, slots=True)
class _Finding:
    """What the rules find on one turn."""

    rule: BoundRule | None
    scores: Mapping[str, float]
    is_closed: bool = True

    @property
    def action(self) -> Action:
        return self.rule.action if self.rule else Action.ALLOW


_NOTHING = _Finding(None, {})


def _severity(action: Action) -> int:
    return action.severity


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy whose probes exist and whose thresholds are numbers."""

    policy: Policy
    probes: tuple[str, ...]
    rules: tuple[BoundRule, ...]
    """Most severe first: the first that holds decides."""
    answers: BoundAnswerRules | None = None
    """The rules on answers, where the policy has any."""
    others: Mapping[Ending, EndingRules] = field(default_factory=dict)
    """The rules for prompts that do not end as the template does. One that ends in no such way is read by no rule."""
    read_open: frozenset[str] = frozenset()
    """Probes and combinations that read a turn which is not closed."""

    @property
    def idle_rules(self) -> dict[str, str]:
        """Return the rules that can never decide, each with the rule that fires wherever it would and goes before
        it.
        """
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
        """Return the verdict on a prompt of one turn with these probe `scores`, or on their absence.

        `tighten` makes a flag or a steer a block, as a client may ask for its own request. `shadow` records without
        acting, for a caller to whom the policy grants it.
        """
        turns = scores if isinstance(scores, Unscored) else [scores]
        return self.judge_turns(turns, tighten=tighten, shadow=shadow)

    def judge_turns(
        self,
        turns: Sequence[Sequence[float]] | Unscored,
        ending: Ending = Ending.TEMPLATE,
        *,
        has_media: bool = False,
        tighten: bool = False,
        shadow: bool = False,
    ) -> Verdict:
        """Return the verdict on a prompt by the scores of its `turns` `[turns][K]`: that on its worst turn.

        Where the prompt does not end as the template does, the last turn is open: only some probes read it, and
        thresholds for such an ending hold for it. Closed turns are judged as ever. Where it has images, audio or video
        in it (`has_media`), its text is judged as ever, and what no rule fires on is unscored.
        """
        began = time.perf_counter()
        worst = (turns, _NOTHING, _NOTHING) if isinstance(turns, Unscored) else self._worst(turns, ending)
        unscored, finding, last = worst
        decision = self.policy.on_unscored if unscored else finding.action
        if not unscored:
            for reason, most in self._unread(ending, has_media):
                if most.severity > decision.severity or (finding.rule is None and not unscored):
                    unscored, decision = reason, most
        rule = None if unscored else finding.rule
        return self.policy.verdict(
            decision.tightened if tighten else decision,
            {} if unscored else finding.scores,
            rule=rule.name if rule else None,
            category=rule.category if rule else None,
            unscored=unscored,
            shadow=shadow,
            began=began,
            ending=ending,
            num_turns=0 if isinstance(turns, Unscored) else len(turns),
            last_scores=None if unscored or last is finding else last.scores,
        )

    def _worst(
        self, turns: Sequence[Sequence[float]], ending: Ending
    ) -> tuple[Unscored | None, "_Finding", "_Finding"]:
        """Return what the rules find on the turn that calls for most, of several the last that is closed; and what
        they find on the last closed turn, whatever that calls for.
        """
        named = [self._named(scores) for scores in turns]
        if not all(math.isfinite(score) for each in named for score in each.values()):
            return Unscored.NOT_FINITE, _NOTHING, _NOTHING
        is_open = ending is not Ending.TEMPLATE
        left = {name: score for name, score in named.pop().items() if name in self.read_open} if is_open else None
        closed = EndingRules(self.rules)
        findings = [_Finding(closed.holding(scores), scores) for scores in named]
        last = findings[-1] if findings else None
        if left is not None:
            findings.append(_Finding(self.others.get(ending, _NO_RULES).holding(left), left, is_closed=False))
        worst = max(reversed(findings), key=lambda each: (each.action.severity, each.is_closed))
        return None, worst, last or worst

    def _unread(self, ending: Ending, has_media: bool) -> Iterator[tuple[Unscored, Action]]:
        """Yield each reason why rules have no say on a prompt, with what is done for it: no more than they would do."""
        none = EndingRules.without(self.rules)
        if ending is not Ending.TEMPLATE and (lost := self.others.get(ending, none).unread) is not Action.ALLOW:
            yield Unscored.OFF_TEMPLATE, min(self.policy.off_template, lost, key=_severity)
        if has_media:
            yield Unscored.MEDIA, min(self.policy.on_media, none.unread, key=_severity)

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
    others: OtherEndings = NO_OTHERS,
) -> BoundPolicy:
    """Bind `policy` to an artifact: its `probes`, their `benign_scores` `[N, K]`, its `steering` vectors, its `digest`,
    what it has for watching answers, and what it knows of prompts that end in `others` ways.

    Probes that are `escalating` say that a prompt is unusual, and not that it is harmful. Raises `PolicyError` for a
    rule that blocks by them alone, for a probe, combination or vector that does not exist, for another artifact than
    the policy names, and for a false-positive rate that N benign prompts cannot certify.
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
    return BoundPolicy(
        policy,
        tuple(probes),
        rules,
        _bound_answers(policy, watched),
        {ending: _bound_ending(policy, probes, rules, others, ending) for ending in others.benign_scores},
        frozenset(others.read_open).union(_all_of(policy, others.read_open)),
    )


def _bound_ending(
    policy: Policy, probes: Sequence[str], rules: Sequence[BoundRule], others: OtherEndings, ending: Ending
) -> EndingRules:
    """Return the rules for prompts that end so, with thresholds certified on harmless ones among these."""
    certified = {*others.certified[ending], *_all_of(policy, others.certified[ending])}
    columns = score_columns(policy, probes, others.benign_scores[ending])
    kept: list[BoundRule] = []
    lost: list[BoundRule] = []
    for rule in rules:
        own = next(each for each in policy.rules if each.name == rule.name)
        bound = _bound_or_none(own, columns) if rule.reads <= certified else None
        (kept if bound else lost).append(bound or rule)
    return EndingRules(tuple(kept), EndingRules.without(lost).unread)


def _bound_or_none(rule: Rule, columns: Columns) -> BoundRule | None:
    """Return the rule, or None where there are too few harmless prompts for what it promises."""
    try:
        [bound] = _bound("rules", [rule], columns, ())
    except PolicyError:
        return None
    return bound


def _all_of(policy: Policy, probes: Collection[str]) -> set[str]:
    """Return the combinations of nothing but these probes."""
    return {name for name, weights in policy.combine.items() if weights.keys() <= set(probes)}


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
