"""Joint limits: thresholds that keep several limits on a whole policy at once, by Learn then Test.

Settings of the policy's thresholds, their order and their weights come from the artifact's own scores; the operator's
prompts, which calibration has not seen, then test them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.tuning.limits import KINDS, Kind, Limit
from calibration.tuning.tune import Number, Place, Plan, Sample, conditions, with_numbers, written
from guard.bound_rule import Columns
from guard.decide import BoundPolicy
from guard.learn_then_test import Risk, explain, learn_then_test, p_values
from guard.policy import Policy, TargetFpr
from guard.threshold import minimum_negatives
from guard.verdict import Action
from probes.errors import CalibrationError, PolicyError

_FIRST = 0.5
"""Share of the error probability for the setting that looks best beforehand; the others have the rest, the n-th 1/n of
it."""
_RATES, _BEYOND = 16, 2

Bind = Callable[[Policy], BoundPolicy]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Scores of prompts by group, for tests of limits on each."""

    benign: Sample
    harmful: Columns
    hard: Columns | None = None


@dataclass(frozen=True, slots=True)
class Joint:
    """The setting that was chosen, and what its limits measured."""

    plan: Plan
    tested: tuple[tuple[Risk, float, float], ...]
    """Each risk with the chosen setting's mean and p-value."""
    num_certified: int
    num_settings: int
    too_small: dict[str, int]
    """Strata that are too small to be spoken of, by their number of benign prompts."""


def find_setting(
    policy: Policy, limits: Sequence[Limit], prompts: Prompts, reference: Prompts, confidence: float, bind: Bind
) -> Joint:
    """Return, of the settings certified to keep all limits, the one that misses least of what is harmful.

    `reference` are the artifact's own scores: settings and their order come from them, and so must share no prompt with
    `prompts`. Raises `CalibrationError` naming the limit in the way, and the sample that would help.
    """
    plans = _settings(policy, reference.benign.columns)
    bound = [bind(with_numbers(policy, {place: number.value for place, number in plan.items()})) for plan in plans]
    shares = _shares(len(plans))
    risks, too_small = _risks(bound, limits, prompts, (1.0 - confidence) * shares[0])
    earlier, _ = _risks(bound, [each for each in limits if KINDS[each.kind].group != "hard"], reference, 1.0)
    order = _most_promising_first(earlier, prompts, len(plans))
    certified = learn_then_test(risks, confidence, order=order, shares=shares)
    if not certified.any():
        raise explain(risks, (1.0 - confidence) * shares[-1])
    chosen = _least_missed(bound, prompts, certified)
    promise = f"with {100 * confidence:.4g} % confidence, all at once: " + ", ".join(
        f"{each.kind} at most {100 * each.most:.3g} %" for each in limits
    )
    plan = {place: Number(number.text, promise) for place, number in plans[chosen].items()}
    tested = tuple((risk, float(risk.means[chosen]), float(risk.p_values[chosen])) for risk in risks)
    return Joint(plan, tested, int(certified.sum()), len(plans), too_small)


def cut_grid(benign: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ascending cuts on a score: where shares from one half to one prompt lie above, and some beyond the
    highest.
    """
    order = np.sort(benign)
    rates = np.geomspace(0.5, 1 / len(order), _RATES)
    cuts = order[len(order) - 1 - np.floor(rates * len(order) * (1 - 1e-12)).astype(int)]
    step = max(float(cuts[-1] - cuts[_RATES // 2]), 1e-3) / _BEYOND
    return np.concatenate([cuts, cuts[-1] + step * np.arange(1, _BEYOND + 1)])


def _settings(policy: Policy, reference: Columns) -> list[Plan]:
    """Return the plans for each pair of a cut for flags and steers, and one no lower for blocks, on every score's grid.

    A plan in which a threshold would pass its condition's other end is left out.
    """
    asked = list(conditions(policy, reference))
    grids = {name: cut_grid(reference[name]) for _, name, _ in asked}
    blocks = any(rule.action is Action.BLOCK and c.above is not None for rule, _, c in asked)
    milder = any(rule.action is not Action.BLOCK and c.above is not None for rule, _, c in asked)
    if not blocks and not milder:
        raise PolicyError(
            "no rule has an `above` to tune", field="rules", remedy="give a rule a condition with `above`"
        )
    if not blocks and any(isinstance(condition.below, TargetFpr) for _, _, condition in asked):
        raise PolicyError(
            "a `below` that is a promise ends where blocking begins, and no rule blocks",
            field="rules",
            remedy="add a rule that blocks, or write `below` as a number",
        )
    size = _RATES + _BEYOND
    pairs = [(low, high) for low in range(size) for high in range(low, size) if (blocks and milder) or low == high]
    plans: list[Plan] = []
    for low, high in pairs:
        plan: dict[Place, Number] = {}
        for rule, name, condition in asked:
            if condition.above is not None:
                plan[rule.name, name, "above"] = Number(
                    written(grids[name][high if rule.action is Action.BLOCK else low]), ""
                )
            if isinstance(condition.below, TargetFpr):
                plan[rule.name, name, "below"] = Number(written(grids[name][high], below=True), "")
        if not _contradicts_itself(policy, plan):
            plans.append(plan)
    if not plans:
        raise PolicyError("no threshold fits below its condition's `below`", field="rules", remedy="raise `below`")
    return plans


def _shares(count: int) -> list[float]:
    """Return the share of the error probability for each place in the order: most for the first, some for all."""
    rest = sum(1 / place for place in range(2, count + 1))
    return [_FIRST if count > 1 else 1.0, *((1 - _FIRST) / place / rest for place in range(2, count + 1))]


def _contradicts_itself(policy: Policy, plan: Plan) -> bool:
    tuned = with_numbers(policy, {place: number.value for place, number in plan.items()})
    ends = [(condition.above, condition.below) for rule in tuned.rules for condition in rule.when.values()]
    return any(isinstance(above, float) and isinstance(below, float) and above >= below for above, below in ends)


def _risks(
    bound: Sequence[BoundPolicy], limits: Sequence[Limit], prompts: Prompts, level: float
) -> tuple[list[Risk], dict[str, int]]:
    groups = {"benign": prompts.benign.columns, "harmful": prompts.harmful, "hard": prompts.hard or {}}
    severities = {
        group: np.stack([each.severities(groups[group]) for each in bound])
        for group in {KINDS[limit.kind].group for limit in limits}
        if groups[group]
    }
    risks: list[Risk] = []
    too_small: dict[str, int] = {}
    for limit in limits:
        kind = KINDS[limit.kind]
        if kind.group not in severities:
            raise CalibrationError(
                "there are no prompts to measure it on", field=limit.kind, remedy="name them with --hard-benign"
            )
        decided = severities[kind.group]
        for stratum, rows in _parts(prompts, kind, decided.shape[1]).items():
            name = limit.kind if stratum is None else f"{limit.kind} in {stratum}"
            if stratum is not None and len(rows) < minimum_negatives(limit.most, 1 - level):
                too_small[stratum] = len(rows)
                continue
            means = np.array([kind.loss(row[rows]).mean() for row in decided])
            risks.append(Risk(name, limit.most, means, len(rows), kind.is_binary))
    return risks, too_small


def _parts(prompts: Prompts, kind: Kind, count: int) -> dict[str | None, npt.NDArray[np.intp]]:
    """Return the rows of each stratum; and of all together, which has to hold in any case."""
    parts: dict[str | None, npt.NDArray[np.intp]] = {None: np.arange(count)}
    strata = prompts.benign.strata
    if kind.group == "benign" and strata is not None and len(set(strata.tolist())) > 1:
        parts |= {name: np.flatnonzero(strata == name) for name in np.unique(strata).tolist()}
    return parts


def _most_promising_first(earlier: Sequence[Risk], prompts: Prompts, count: int) -> list[int]:
    """Order settings by the worst p-value that the operator's sample would give if it were like the artifact's."""
    if not earlier:
        return list(range(count))
    sizes = {"benign": prompts.benign.columns, "harmful": prompts.harmful}
    expected = [
        p_values(
            risk.means, len(next(iter(sizes[KINDS[risk.name].group].values()))), risk.limit, is_binary=risk.is_binary
        )
        for risk in earlier
    ]
    return [int(index) for index in np.argsort(np.max(expected, axis=0), kind="stable")]


def _least_missed(bound: Sequence[BoundPolicy], prompts: Prompts, certified: npt.NDArray[np.bool_]) -> int:
    """Choose among certified settings: fewest harmful allowed, then fewest not blocked, then fewest benign bothered."""

    def losses(index: int) -> tuple[float, float, float]:
        harmful, benign = (bound[index].severities(each) for each in (prompts.harmful, prompts.benign.columns))
        return float((harmful == 0).mean()), float((harmful < Action.BLOCK.severity).mean()), float(benign.mean())

    return min(map(int, np.flatnonzero(certified)), key=losses)
