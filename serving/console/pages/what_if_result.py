"""What the page What if answers: counts by action, tenant and route, what labels say, and which decisions change."""

from collections.abc import Mapping, Sequence

from nicegui import ui

from guard.store.reader import Record
from guard.tuning.estimates import Estimated
from guard.tuning.judged import WHY
from guard.tuning.what_if import Counts, WhatIf
from guard.verdict import Action
from serving.console.frame import paragraph, table, tiles

LISTED = 50
"""Decisions that are listed, the newest ones."""


def show(found: WhatIf, records: Sequence[Record]) -> None:
    """Show the answer; `records` are the newest of the decisions that change."""
    tiles((("decisions that change", f"{len(found.changes):,}"), ("of so many judged anew", f"{found.judged:,}")))
    _notes(found)
    with ui.element("div").classes("side"):
        table("Decisions by action", ("action", "now", "then", "change"), _rows(found.counts))
        table("What labels say, with 95 % intervals", ("share", "now", "then"), _shares(found))
    with ui.element("div").classes("side"):
        _groups("By tenant", found.by_tenant)
        _groups("By route", found.by_route)
    if records:
        _list(found, records)


def _rows(counts: Counts) -> list[tuple[object, ...]]:
    return [(a.value, counts.before[a], counts.after[a], f"{counts.after[a] - counts.before[a]:+,}") for a in Action]


def _groups(title: str, groups: Mapping[str, Counts]) -> None:
    stops = (Action.FLAG, Action.STEER, Action.BLOCK)
    rows = [
        (
            name or "(none)",
            each.total,
            *(f"{each.before[action]:,} → {each.after[action]:,}" for action in stops),
        )
        for name, each in list(groups.items())[:20]
    ]
    table(title, (title.removeprefix("By "), "decisions", *(action.value for action in stops)), rows)


def _notes(found: WhatIf) -> None:
    labels = found.after.labels
    if not any(labels.values()):
        paragraph("No decision is labelled yet, so rates are not known: label some on the page Review.", "note")
    left = [f"{number:,} {WHY[reason]}" for reason, number in found.left_out.items()]
    if left:
        paragraph(f"Left out, because they cannot be judged anew: {'; '.join(left)}.")
    if found.recorded_otherwise:
        paragraph(
            f"{found.recorded_otherwise:,} of these were recorded with another action than these rules call for: "
            "another policy decided them, or the client asked for a block."
        )


def _shares(found: WhatIf) -> list[tuple[str, str, str]]:
    return [
        (name, _share(before), _share(after))
        for name, before, after in (
            ("false-positive rate", found.before.fpr, found.after.fpr),
            ("recall of harm", found.before.recall, found.after.recall),
            ("precision", found.before.precision, found.after.precision),
        )
    ]


def _share(estimated: Estimated) -> str:
    found = estimated.known or estimated.unknown
    if found is None:
        return "not known"
    of = "" if estimated.known else ", of the labels"
    return f"{found.value:.2%} ({found.low:.2%} to {found.high:.2%}{of})"


def _list(found: WhatIf, records: Sequence[Record]) -> None:
    places = {int(key): row for row, key in enumerate(found.changes.keys[:LISTED].tolist())}
    table(
        f"The newest of {len(found.changes):,} decisions that change",
        ("time (UTC)", "event id", "tenant", "now", "then", "label"),
        (
            (
                f"{record.decision.at:%Y-%m-%d %H:%M:%S}",
                record.decision.event_id,
                record.decision.tenant or "",
                found.changes.before[places[record.key]].value,
                found.changes.after[places[record.key]].value,
                record.label.label.value if record.label else "",
            )
            for record in records
        ),
    )
