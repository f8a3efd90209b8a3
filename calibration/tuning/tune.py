"""Tuning: an operator's own benign prompts give every threshold of a policy its number.

What the numbers do to the prompts at hand is in `outcome.py`; the diff that a person reviews, in `policy_edit.py`;
limits that have to hold jointly, in `joint.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import numpy as np
import numpy.typing as npt

from calibration.fitting.metrics import rate
from guard.bound_rule import Columns
from guard.policy import Condition, Policy, Rule, TargetFpr
from guard.threshold import (
    CertifiedBand,
    StratifiedThreshold,
    Threshold,
    certify_band,
    certify_strata,
    share_confidence,
)
from guard.verdict import Action
from probes.errors import CalibrationError, PolicyError
from probes.manifest import Rate

_STEP = Decimal("0.0001")

Place = tuple[str, str, Literal["above", "below"]]
"""Where a number stands in a policy: rule, score, and end of the condition."""


@dataclass(frozen=True, slots=True)
class Number:
    """A threshold as it is written, and the promise behind it in words."""

    text: str
    promise: str

    @property
    def value(self) -> float:
        """What the text says."""
        return float(self.text)


Plan = Mapping[Place, Number]


@dataclass(frozen=True, slots=True)
class Sample:
    """An operator's benign prompts: their scores, and the strata that they belong to."""

    columns: Columns
    strata: npt.NDArray[np.str_] | None = None
    """`[N]`; one stratum where there are none."""

    def labels(self, name: str) -> npt.NDArray[np.str_]:
        """Return the stratum of each prompt `[N]`, of those that have score `name`."""
        return np.full(len(self.columns[name]), "all") if self.strata is None else self.strata

    def certify(self, name: str, target_fpr: float, confidence: float) -> StratifiedThreshold:
        """Return the cut on score `name` that every stratum's prompts certify. Raises `TooFewNegatives`."""
        return certify_strata(self.columns[name], self.labels(name), target_fpr, confidence)

    def band(self, name: str, block_fpr: float, flag_fpr: float, confidence: float) -> CertifiedBand:
        """Return the two cuts on score `name` that every stratum's prompts certify. Raises `TooFewNegatives`."""
        return certify_band(self.columns[name], self.labels(name), block_fpr, flag_fpr, confidence)


@dataclass(frozen=True, slots=True)
class Tuned:
    """A score's threshold on the operator's prompts, and the recall to expect of it."""

    name: str
    certified: StratifiedThreshold
    recall: Rate
    action: str = "flag"
    """What the threshold is for: `flag` or `block`."""

    @property
    def threshold(self) -> Threshold:
        """The cut, which is that of the strictest stratum."""
        return self.certified.threshold


def tune_scores(benign: Sample, harmful: Columns, target_fpr: float, confidence: float) -> list[Tuned]:
    """Return each score's certified threshold on `benign`, with its recall on `harmful`. Raises `TooFewNegatives`."""
    certified = {name: benign.certify(name, target_fpr, confidence) for name in benign.columns}
    return [Tuned(name, found, _recall(harmful[name], found)) for name, found in certified.items()]


def tune_bands(bands: Mapping[str, CertifiedBand], harmful: Columns) -> list[Tuned]:
    """Return both cuts of each score's band, with their recalls on `harmful`."""
    return [
        Tuned(name, certified, _recall(harmful[name], certified), action)
        for name, band in bands.items()
        for action, certified in (("flag", band.flag), ("block", band.block))
    ]


def stated_plan(policy: Policy, benign: Sample, target_fpr: float, confidence: float) -> dict[Place, Number]:
    """Return a certified number for every `above` of the policy, and for every `below` that is a promise.

    A condition that states its own `target_fpr` keeps to it; one that holds a number gets the target given here.
    """
    plan: dict[Place, Number] = {}
    for rule, name, condition in conditions(policy, benign.columns):
        for end, stated in (("above", condition.above), ("below", condition.below)):
            if stated is None or (end == "below" and not isinstance(stated, TargetFpr)):
                continue
            target, sure = (
                (stated.target_fpr, stated.confidence) if isinstance(stated, TargetFpr) else (target_fpr, confidence)
            )
            plan[_place(rule, name, end)] = _number(end, name, benign.certify(name, target, sure), benign)
    return plan


def band_plan(
    policy: Policy, bands: Mapping[str, CertifiedBand], benign: Sample, confidence: float
) -> dict[Place, Number]:
    """Return the bands' numbers for the policy: blocks begin at the upper cut, flags and steers at the lower one.

    A promise `below` becomes the upper cut, so that the band ends where blocking begins. `confidence` is that of
    all bands together, as they were certified.
    """
    plan: dict[Place, Number] = {}
    together = f" ({100 * confidence:.4g} % for all of these at once)"
    for rule, name, condition in conditions(policy, benign.columns):
        if condition.above is not None:
            upper = rule.action is Action.BLOCK
            certified = bands[name].block if upper else bands[name].flag
            plan[_place(rule, name, "above")] = _number("above", name, certified, benign, together)
        if isinstance(condition.below, TargetFpr):
            plan[_place(rule, name, "below")] = _number("below", name, bands[name].block, benign, together)
    return plan


def certify_bands(
    policy: Policy, benign: Sample, block_fpr: float, flag_fpr: float, confidence: float
) -> dict[str, CertifiedBand]:
    """Return a band for every score that a rule asks to be above something; all hold together with `confidence`.

    Raises `PolicyError` where the policy lacks one of the two kinds of rules, `TooFewNegatives`, and
    `CalibrationError`.
    """
    asked = [
        (rule, name) for rule, name, condition in conditions(policy, benign.columns) if condition.above is not None
    ]
    names = list(dict.fromkeys(name for _, name in asked))
    for kind, present in (
        ("flag", any(rule.action is not Action.BLOCK for rule, _ in asked)),
        ("block", any(rule.action is Action.BLOCK for rule, _ in asked)),
    ):
        if not present:
            score = names[0] if names else next(iter(benign.columns))
            raise PolicyError(
                f"a band has two ends, and no rule of the policy would {kind}",
                field="rules",
                remedy=f"add one: - {{name: {kind}-{score}, action: {kind}, when: {{{score}: {{above: 0}}}}}}",
            )
    each = share_confidence(confidence, len(names))
    return {name: benign.band(name, block_fpr, flag_fpr, each) for name in names}


def conditions(policy: Policy, columns: Columns) -> Iterator[tuple[Rule, str, Condition]]:
    """Yield every condition with its rule and score. Raises `PolicyError` for a score that is not in `columns`."""
    for rule in policy.rules:
        for name, condition in rule.when.items():
            if name not in columns:
                raise PolicyError(
                    f"no probe or combination is named {name!r}",
                    field=f"rules.{rule.name}.when.{name}",
                    remedy=f"use one of: {', '.join(sorted(columns))}",
                )
            yield rule, name, condition


def with_numbers(policy: Policy, values: Mapping[Place, float]) -> Policy:
    """Return the policy with numbers at these places."""
    rules = []
    for rule in policy.rules:
        when = {
            name: condition.model_copy(
                update={
                    end: values[place] for end in ("above", "below") if (place := _place(rule, name, end)) in values
                }
            )
            for name, condition in rule.when.items()
        }
        rules.append(rule.model_copy(update={"when": when}))
    return policy.model_copy(update={"rules": tuple(rules)})


def written(cut: float, *, below: bool = False) -> str:
    """Return a threshold with four decimals, never lower than `cut`: a hair higher keeps its promise.

    For `below`, a step higher still, so that a score that ties with the cut is within.
    """
    if not np.isfinite(cut):
        raise CalibrationError(
            "a threshold is not a finite number", field="threshold", remedy="score the prompts again"
        )
    return str(Decimal(cut).quantize(_STEP, ROUND_CEILING) + (_STEP if below else 0))


def _place(rule: Rule, name: str, end: str) -> Place:
    return (rule.name, name, "above" if end == "above" else "below")


def _number(end: str, name: str, certified: StratifiedThreshold, benign: Sample, together: str = "") -> Number:
    cut, scores = certified.threshold, benign.columns[name]
    over = int((scores > cut.value).sum())
    side = "above" if end == "above" else "at or above"
    promise = (
        f"at most {100 * cut.target_fpr:.3g} % of benign requests{_where(certified)} have {name} {side} this, "
        f"with {100 * cut.confidence:.4g} % confidence{together} ({over} of {len(scores)} had)"
    )
    return Number(written(cut.value, below=end == "below"), promise)


def _where(certified: StratifiedThreshold) -> str:
    """Say which strata the promise speaks of, and of which it does not."""
    names = list(certified.strata)
    kept = "" if names == ["all"] else f" in {'each of ' if len(names) > 1 else ''}{'; '.join(names)}"
    return kept + (f" (nothing is promised of {'; '.join(certified.too_small)})" if certified.too_small else "")


def _recall(harmful: npt.NDArray[np.float64], certified: StratifiedThreshold) -> Rate:
    return rate(int((harmful > certified.threshold.value).sum()), len(harmful))
