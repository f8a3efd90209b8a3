"""The page Live: what is decided now, and by which policy."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from nicegui import ui

from guard.store.counting import Count, counts
from guard.store.filters import Filters
from guard.store.replicas import Seen, replicas
from guard.verdict import Action
from probes.errors import ForeguardError
from serving.console.charts import lines, stacked
from serving.console.frame import heading, nothing_yet, paragraph, shown, stored, table, tiles
from serving.console.source import Source

_SPAN = timedelta(hours=1)
_EVERY_S = 5.0
_LISTED = 50


async def live(source: Source) -> None:
    """Show the last hour, and go on showing it."""
    area = ui.column().classes("w-full no-wrap")

    async def again() -> None:
        # Read first, and only then exchanged, so that nothing flickers.
        found = await _read(source)
        area.clear()
        with area:
            await shown(_hour, source, found)

    await again()
    ui.timer(_EVERY_S, again)


Found = tuple[list[Count], list[Seen]]


async def _read(source: Source) -> Found | ForeguardError:
    """Return counts by decision, and what each replica goes by; or why there are none."""
    within = Filters(since=datetime.now(UTC) - _SPAN)
    try:
        store = source.store
        return await stored(
            source,
            lambda: (
                counts(store, within, by=("decision", "action", "unscored")),
                replicas(store, within),
            ),
        )
    except ForeguardError as error:
        return error


async def _hour(source: Source, read: Found | ForeguardError) -> None:
    _say_drift(source)
    if isinstance(read, ForeguardError):
        raise read
    found, seen = read
    if not found:
        nothing_yet("No decision in the last hour. Send a request to the server, and it is here within seconds.")
        return
    _show(found)
    _show_replicas(seen)


def _show_replicas(seen: Sequence[Seen]) -> None:
    """Show what each replica last decided by, the policies of few replicas first."""
    heading("Policy by replica")
    by_policy = Counter(each.policy.partition("+")[0] for each in seen)
    if len(by_policy) > 1:
        said = ", ".join(f"{policy} in {number}" for policy, number in by_policy.most_common())
        paragraph(f"Replicas do not go by one policy: {said}. It may be a change that is on its way.", "note")
    ordered = sorted(seen, key=lambda each: (by_policy[each.policy.partition("+")[0]], each.replica))
    table(
        f"The last decision of each of {len(seen):,} replicas, by its own clock",
        ("replica", "policy", "last decision (UTC)", "decisions in the last hour"),
        ((each.replica, each.policy, f"{each.last:%H:%M:%S}", each.decisions) for each in ordered[:_LISTED]),
    )


def _say_drift(source: Source) -> None:
    if source.drift and any(_alarms(each["drift"]) for each in source.drift.processes()):
        with ui.element("p").classes("alarm").props('role="status"'):
            ui.label("Scores or rates have drifted from calibration.").style("display:inline")
            ui.link("See what moved them.", "/drift").style("margin-left:.4rem")


def _alarms(drift: dict[str, object]) -> bool:
    scores = drift.get("scores")
    return isinstance(scores, list) and any(each.get("drifted") for each in scores)


def _show(found: Sequence[Count]) -> None:
    decided, acted, unscored = Counter[str](), Counter[str](), 0
    for each in found:
        decision, action, reason = each.words
        decided[decision or ""] += each.decisions
        acted[action or ""] += each.decisions
        unscored += each.decisions if reason else 0
    total = decided.total()
    flagged = total - decided[Action.ALLOW]
    waited = sum(each.mean_seconds * each.decisions for each in found) / total
    tiles(
        (
            ("decisions in the last hour", f"{total:,}"),
            ("would be flagged, steered or blocked", f"{flagged:,} ({flagged / total:.1%})"),
            ("blocked", f"{acted[Action.BLOCK]:,}"),
            ("without a score", f"{unscored:,}"),
            ("mean wait for a verdict", f"{waited * 1e3:.0f} ms"),
        )
    )
    minutes = sorted({each.start for each in found})
    by_minute = {minute: Counter[str]() for minute in minutes}
    for each in found:
        by_minute[each.start][each.words[0] or ""] += each.decisions
    times = [f"{minute:%H:%M}" for minute in minutes]
    shares = {action.value: [by_minute[minute][action] for minute in minutes] for action in Action}
    heading("Decisions a minute")
    stacked(
        f"Decisions a minute, by decision: {', '.join(f'{decided[a]} {a.value}' for a in Action)} in the last hour.",
        times,
        shares,
    )
    longest = [max(each.longest_seconds for each in found if each.start == minute) * 1e3 for minute in minutes]
    mean = [_mean([each for each in found if each.start == minute]) * 1e3 for minute in minutes]
    heading("Wait for a verdict")
    paragraph("From when vLLM was asked to the verdict, queue and prefill and all.")
    lines(
        f"Wait for a verdict by minute, in milliseconds: on average {waited * 1e3:.0f}, at most {max(longest):.0f}.",
        times,
        {"mean": [round(each, 1) for each in mean], "longest": [round(each, 1) for each in longest]},
        "ms",
    )


def _mean(found: Sequence[Count]) -> float:
    return sum(each.mean_seconds * each.decisions for each in found) / sum(each.decisions for each in found)
