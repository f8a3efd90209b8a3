"""Tuning: an operator's own benign prompts give the thresholds, and the policy file gets them as a diff to review."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import yaml

from calibration.metrics import rate
from guard.policy import Condition, Policy, TargetFpr
from guard.threshold import StratifiedThreshold, Threshold, certify_strata
from probes.errors import PolicyError
from probes.manifest import Rate

Columns = Mapping[str, npt.NDArray[np.float32]]
"""Request scores `[N]` by probe or combination."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An operator's benign prompts: their scores, and the strata that they belong to."""

    columns: Columns
    strata: npt.NDArray[np.str_] | None = None
    """`[N]`; one stratum where there are none."""

    def certify(self, name: str, target_fpr: float, confidence: float) -> StratifiedThreshold:
        """Return the cut on score `name` that every stratum's prompts certify. Raises `TooFewNegatives`."""
        scores = self.columns[name]
        strata = np.full(len(scores), "all") if self.strata is None else self.strata
        return certify_strata(scores, strata, target_fpr, confidence)


@dataclass(frozen=True, slots=True)
class Tuned:
    """A probe's threshold on the operator's prompts, and the recall to expect of it."""

    name: str
    certified: StratifiedThreshold
    recall: Rate

    @property
    def threshold(self) -> Threshold:
        """The cut, which is that of the strictest stratum."""
        return self.certified.threshold


@dataclass(frozen=True, slots=True)
class _Edit:
    """A replacement of characters `start` to `end` of the policy's text."""

    start: int
    end: int
    text: str


def columns_of(
    names: Sequence[str], scores: npt.NDArray[np.float32], policy: Policy
) -> dict[str, npt.NDArray[np.float32]]:
    """Return scores `[N, K]` by name, the policy's combinations included. Raises `PolicyError` for an unknown probe."""
    columns = {name: scores[:, column] for column, name in enumerate(names)}
    for name, weights in policy.combine.items():
        for probe in weights:
            _require_known(f"combine.{name}", probe, names)
        total = sum(weight * columns[probe].astype(np.float64) for probe, weight in weights.items())
        columns[name] = np.asarray(total, dtype=np.float32)
    return columns


def tune_scores(benign: Sample, harmful: Columns, target_fpr: float, confidence: float) -> list[Tuned]:
    """Return each score's certified threshold on `benign`, with its recall on `harmful`. Raises `TooFewNegatives`."""
    tuned = []
    for name in benign.columns:
        certified = benign.certify(name, target_fpr, confidence)
        recall = rate(int((harmful[name] > certified.threshold.value).sum()), len(harmful[name]))
        tuned.append(Tuned(name, certified, recall))
    return tuned


def policy_diff(text: str, source: str, policy: Policy, benign: Sample, target_fpr: float, confidence: float) -> str:
    """Return the unified diff that puts a certified number into every `above` of the policy.

    A condition that states its own `target_fpr` keeps to it; one that holds a number gets the target given here.
    All other text, comments included, stays. Empty when nothing changes.
    """
    edits = sorted(
        _edits(text, policy, benign, TargetFpr(target_fpr=target_fpr, confidence=confidence)),
        key=lambda edit: -edit.start,
    )
    tuned = text
    for edit in edits:
        tuned = tuned[: edit.start] + edit.text + tuned[edit.end :]
    lines = difflib.unified_diff(
        text.splitlines(keepends=True), tuned.splitlines(keepends=True), source, f"{source} (tuned)"
    )
    return "".join(lines)


def _edits(text: str, policy: Policy, benign: Sample, default: TargetFpr) -> Iterator[_Edit]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    rules = _value(root, "rules")
    for rule, node in zip(policy.rules, getattr(rules, "value", []), strict=True):
        for name, condition in rule.when.items():
            pair = _pair(_value(_value(node, "when"), name), "above")
            if condition.above is None or pair is None:
                continue
            _require_known(f"rules.{rule.name}.when.{name}", name, list(benign.columns))
            start = text.index(":", pair[0].end_mark.index) + 1
            yield _Edit(start, _end(pair[1]), f" {_number(condition, benign, name, default)}")


def _number(condition: Condition, benign: Sample, name: str, default: TargetFpr) -> str:
    target = condition.above if isinstance(condition.above, TargetFpr) else default
    cut = benign.certify(name, target.target_fpr, target.confidence).threshold.value
    # Rounded up: a threshold that is a hair higher keeps its promise.
    return f"{np.ceil(cut * 1e4) / 1e4:.4f}"


def _pair(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((pair for pair in node.value if pair[0].value == key), None)


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pair = _pair(node, key)
    return pair[1] if pair else None


def _end(node: yaml.Node) -> int:
    # A block mapping's own end mark lies beyond the line break after it; its last scalar's does not.
    while isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        node = node.value[-1][1]
    return int(node.end_mark.index)


def _require_known(field: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise PolicyError(
            f"no probe or combination is named {name!r}", field=field, remedy=f"use one of: {', '.join(sorted(known))}"
        )
