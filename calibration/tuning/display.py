"""Tables of a tuning: what the thresholds promise, and what the policy would do, as a person reads them beside the
diff.
"""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from calibration.fitting.metrics import rate
from calibration.report.display import percent, table_of
from calibration.tuning.joint import Joint
from calibration.tuning.limits import KINDS
from calibration.tuning.outcome import GroupOutcome, precision
from calibration.tuning.settle import Tuning
from calibration.tuning.tune import Tuned
from guard.tuning.estimates import Estimate
from guard.tuning.what_if import WhatIf
from guard.verdict import Action
from probes.manifest import Rate


def tuning_tables(found: Tuning) -> RenderableType:
    """Return thresholds with their promises, what the policy does before and after, and what there is to beware of.

    Where a prevalence was asked for, also what a score at a threshold means there.
    """
    prevalence = next((platt.prevalence for platt in found.platt.values()), None)
    parts: list[RenderableType] = []
    if found.scores:
        parts.append(_scores(found, prevalence))
        parts += _strata(found.scores)
    if found.joint is not None:
        parts += _joint(found.joint)
    parts.append(_outcomes(found))
    if found.traffic is not None:
        parts += _traffic(found.traffic)
    if prevalence is not None:
        parts.append(Text(_precision(found, prevalence)))
    return Group(*parts, *(Text(f"note: {note}") for note in found.notes))


def _scores(found: Tuning, prevalence: float | None) -> Table:
    chance = [] if prevalence is None else [f"probability of harm there, at {prevalence:.4g}"]
    table = table_of(
        "thresholds on your prompts",
        "score",
        "threshold",
        "promise",
        "of benign above",
        "expected recall (95 %)",
        *chance,
    )
    for item in found.scores:
        cut = item.threshold
        promise = f"{item.action}: at most {cut.target_fpr:.2%} of benign requests, {100 * cut.confidence:.4g} % sure"
        exceedances = f"at most {cut.allowed_exceedances} of {cut.num_negatives}"
        row = [item.name, f"{cut.value:.4f}", promise, exceedances, percent(item.recall)]
        if prevalence is not None:
            platt = found.platt.get(item.name)
            row.append(f"{platt.probability(cut.value):.2%}" if platt else "–")
        table.add_row(*row)
    return table


def _strata(scores: tuple[Tuned, ...]) -> Iterator[RenderableType]:
    names = list(dict.fromkeys(name for item in scores for name in item.certified.strata))
    if names != ["all"]:
        table = table_of("each stratum's own threshold; the highest is used", "score", "for", *map(escape, names))
        for item in scores:
            cuts = item.certified.strata
            table.add_row(
                item.name, item.action, *(f"{cuts[name].value:.4f}" if name in cuts else "–" for name in names)
            )
        yield table
    missing = {item.action: item.certified for item in scores if item.certified.too_small}
    for action, certified in missing.items():
        yield _too_small(certified.too_small, f" ({certified.needed} are needed to {action})")


def _too_small(sizes: dict[str, int], needed: str = "") -> Text:
    listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    return Text(f"too few benign prompts to promise anything{needed}: {listed}")


def _joint(joint: Joint) -> Iterator[RenderableType]:
    table = table_of(
        f"limits kept together, by {joint.num_certified} of {joint.num_settings} settings; chosen: the one that misses "
        "least",
        "limit", "at most", "measured (95 %)", "p-value", "what",
    )  # fmt: skip
    for risk, mean, p_value in joint.tested:
        measured = percent(rate(round(mean * risk.count), risk.count)) if risk.is_binary else f"{mean:.2%}"
        kind = KINDS[risk.name.split(" in ")[0]]
        table.add_row(risk.name, f"{risk.limit:.2%}", measured, f"{p_value:.1e}", kind.what)
    yield table
    if joint.too_small:
        yield _too_small(joint.too_small)


def _outcomes(found: Tuning) -> Table:
    table = table_of(
        "what the policy does",
        "prompts",
        "number",
        "policy",
        *(action.value for action in Action),
        "not allowed, in all",
    )
    for name, after in found.after.items():
        if name in found.before:
            table.add_row(name, str(after.count), "now", *_shares(found.before[name]))
        table.add_row("" if name in found.before else name, str(after.count), "tuned", *_shares(after))
    return table


def _traffic(traffic: WhatIf) -> Iterator[RenderableType]:
    table = table_of(f"what it does to your last {traffic.judged:,} decisions", "policy", *(a.value for a in Action))
    for name, counts in (("now", traffic.counts.before), ("tuned", traffic.counts.after)):
        table.add_row(name, *(f"{counts[action]:,}" for action in Action))
    yield table
    kinds = (
        ("fpr", "benign that it stops"),
        ("recall", "harmful that it stops"),
        ("precision", "harmful of the stopped"),
    )
    table = table_of("what labels say of all traffic (95 %)", "share", "now", "tuned", "labels")
    for name, words in kinds:
        before, after = (getattr(each, name).known for each in (traffic.before, traffic.after))
        table.add_row(words, _estimate(before), _estimate(after), f"{after.count:,}" if after else "0")
    yield table


def _estimate(found: Estimate | None) -> str:
    return f"{found.value:.1%} ({found.low:.1%}–{found.high:.1%})" if found else "–"


def _shares(outcome: GroupOutcome) -> list[str]:
    shares: list[Rate] = [*outcome.decisions.values(), outcome.interfered]
    return [percent(share) for share in shares]


def _precision(found: Tuning, prevalence: float) -> str:
    right = precision(found.after["benign"], found.after["harmful"], prevalence)
    return f"where {prevalence:.4g} of traffic is harmful, {right:.1%} of what is not simply allowed would be harmful"
