"""The page Drift: what each process found, and an operator's word that it was understood."""

from typing import Any

from nicegui import ui

from serving.admin.drift_desk import DriftDesk
from serving.console.frame import heading, in_thread, nothing_yet, paragraph, shown, table
from serving.console.source import Source

_BEYOND = 3.0
"""Standard errors beyond which a mean has moved."""
_PARTS = 5


async def drift(source: Source) -> None:
    """Show what drifted, and which part moved it."""
    desk = source.drift
    if desk is None:
        nothing_yet("This console stands beside a fleet. Drift is at each server's admin port, and in its metrics.")
        return

    @ui.refreshable
    async def found() -> None:
        await shown(_found, desk)

    async def acknowledge() -> None:
        await in_thread(desk.acknowledge)
        ui.notify("Every process watches anew.")
        found.refresh()

    await found()
    ui.button("Acknowledge, and watch anew", on_click=acknowledge).props("no-caps color=grey-8")


async def _found(desk: DriftDesk) -> None:
    processes = await in_thread(desk.processes)
    if not processes:
        nothing_yet("No process has told of drift yet. Each does so every five seconds, once the server is up.")
    for each in processes:
        heading(f"Process {each.get('pid', each.get('process', ''))}")
        _show(each["drift"])


def _show(found: dict[str, Any]) -> None:
    scores = found.get("scores", [])
    alarms = [each for each in scores if each.get("drifted")]
    where = [f"{each['probe']} ({each['stratum'] or 'all traffic'})" for each in alarms]
    if alarms:
        paragraph(f"Drifted: {', '.join(where[:10])}.", "alarm")
    else:
        paragraph("No score has drifted.")
    rows = [
        (
            each["probe"],
            f"{each['dimension']} {each['stratum']}".strip() or "all traffic",
            "drifted" if each["drifted"] else "",
            float(each["stability"].get("psi") or 0.0),
        )
        for each in scores
        if each["drifted"] or not each["stratum"]
    ]
    table("Scores against calibration's benign prompts", ("probe", "of", "alarm", "PSI"), rows)
    _rates(found)
    _novelty(found.get("novelty") or [])
    _moved(found.get("moved") or [])


def _rates(found: dict[str, Any]) -> None:
    rows = []
    for name, rate in (("flags", found.get("flags")), ("without a score", found.get("unscored"))):
        if isinstance(rate, dict):
            share = rate["share"]
            rows.append((name, f"{share['value']:.2%}", f"{rate['usual']:.2%}", "yes" if rate["alarm_at"] else ""))
    if rows:
        table("Rates", ("of", "now", "usual", "alarm"), rows)


def _novelty(found: list[dict[str, Any]]) -> None:
    rows = [
        (each["probe"], f"{each['recent']:.1%}", f"{each['usual']:.1%}", "yes" if each["drifted"] else "")
        for each in found
    ]
    if rows:
        table("Out of distribution", ("probe", "now", "usual", "alarm"), rows)


def _moved(found: list[dict[str, Any]]) -> None:
    """Show of each mean that moved beyond its noise which part moved it, the largest part first."""
    rows = [
        (
            each["probe"],
            f"{each['dimension']} {part['name']}",
            f"{part['within']:+.3f}",
            f"{part['mix']:+.3f}",
            f"{part['share']:.0%}",
        )
        for each in found
        if abs(each["shift"]) > _BEYOND * each["noise"]
        for part in each["contributions"][:_PARTS]
    ]
    if rows:
        heads = ("score", "part", "by scoring otherwise", "by being more of it", "share of the shift")
        table("What moved the means", heads, rows)
