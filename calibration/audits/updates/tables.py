"""A comparison of two builds as a person reads it."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from calibration.audits.updates.flips import Decided, Flip, Side, Update
from calibration.report.display import table_of

_MOST = 50
"""Flips that are listed."""
_EXCERPT = 60


def update_tables(update: Update, alpha: float) -> RenderableType:
    """Return what became of each label's requests, the flips, negative ones first, and what the test says."""
    sides = table_of(
        f"requests that are stopped ({update.stops} or more)",
        *("label", "prompts", "before", "after", "flips for the worse", "for the better", "p"),
    )
    for label, side in (("harmful", update.harmful), ("harmless", update.harmless)):
        sides.add_row(label, *_numbers(side))
    return Group(sides, *([_listed(update)] if update.flips else []), *map(Text, _notes(update, alpha)))


def _numbers(side: Side) -> list[str]:
    counts = (side.num_prompts, side.num_stopped_before, side.num_stopped_after, side.num_negative, side.num_positive)
    return [*map(str, counts), f"{side.p_value:.3g}"]


def _listed(update: Update) -> Table:
    table = table_of("flips", "for the", "label", "prompt", "before", "after")
    for flip in update.flips[:_MOST]:
        label = "harmful" if flip.prompt.is_harmful else "harmless"
        way = "worse" if flip.is_negative else "better"
        table.add_row(way, label, escape(_excerpt(flip)), _decided(flip.before), _decided(flip.after))
    return table


def _notes(update: Update, alpha: float) -> list[str]:
    said = "more flips are for the worse than chance explains" if update.is_worse(alpha) else "no more than chance"
    notes = [f"{said}: an exact test on the flips of each label, at {alpha / 2:g} each"]
    if (more := len(update.flips) - _MOST) > 0:
        notes.append(f"{more} more flips are in the file that --json writes")
    return notes


def _excerpt(flip: Flip) -> str:
    text = " ".join(flip.prompt.text.split())
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…"


def _decided(decided: Decided) -> str:
    return f"{decided.decision} ({decided.rule})" if decided.rule else decided.decision.value
