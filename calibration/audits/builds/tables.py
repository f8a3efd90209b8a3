"""A comparison of two builds, as a person reads it in a terminal."""

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibration.audits.builds.comparison import Comparison
from calibration.audits.builds.verdict import SafetyChange, moved_heads

_MOST_HEADS, _MOST_NEURONS = 8, 8


def comparison_tables(found: Comparison, verdict: SafetyChange) -> RenderableType:
    """Return the verdict, what moved, and the numbers behind it, each beside its noise floor."""
    # The first thing that moved is the verdict's own sentence.
    more = [Text(f"also: {part}") for part in verdict.moved[1:]]
    return Group(
        Text(verdict.sentence, style="bold red" if verdict.moved else "bold green"),
        *more,
        _parts(found),
        _blocks(found),
        *([_heads(found)] if found.heads else []),
        *([_neurons(found)] if found.neuron_weights.size else []),
        *(Text(note) for note in found.notes),
        Text(f"files that differ: {', '.join(found.differing) or 'none'}"),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _parts(found: Comparison) -> Table:
    table = _table("refusals and weights", "", "first", "second", "change", "by rounding alone")
    for name, rates in (
        ("harmful prompts refused", found.refused),
        ("harmless prompts refused", found.refused_harmless),
    ):
        if rates is not None:
            shown = [f"{each.value:.0%} ({each.low:.0%}–{each.high:.0%})" for each in rates]
            table.add_row(name, *shown, f"{rates[1].value - rates[0].value:+.0%}", "")
    if found.refused is not None:
        change = float(found.changed.refusal_gap.mean())
        gaps = (f"{found.metric_gap:.2f}", f"{found.metric_gap + change:.2f}")
        table.add_row(
            "log-odds of refusal, harmful − harmless", *gaps, f"{change:+.2f}", f"{found.floor.refusal_gap:.2f}"
        )
    for name, weights in (("head", found.head_weights), ("neuron", found.neuron_weights)):
        if weights.size:
            moved = f"{int((weights > found.floor.weights).sum())} of {weights.size}"
            table.add_row(
                f"{name}s whose weights moved", "", "", moved, f"up to {found.floor.weights:.1%} of their norm"
            )
    if found.written is not None:
        table.add_row(
            "share of written change on one direction",
            "",
            "",
            f"{found.written.share:.0%}",
            f"{1 / len(found.written.direction):.1%}",
        )
    return table


def _blocks(found: Comparison) -> Table:
    table = _table(
        "refusal direction, by block (* where it is clearest)", "block", "cosine", "gap along it, second / first"
    )
    for block, (cosine, gap) in enumerate(zip(found.changed.cosine, found.changed.gap, strict=True)):
        table.add_row(f"{block}{' *' if block == found.block else ''}", f"{cosine:.3f}", f"{gap:.1%}")
    table.add_row("rounding *", f"{found.floor.cosine:.3f}", f"within {found.floor.gap:.1%}")
    return table


def _heads(found: Comparison) -> Table:
    moved = set(moved_heads(found))
    table = _table("heads that changed most (* moved)", "block.head", "Ships, first", "Ships, second", "weights moved")
    for row in np.argsort(-np.abs(found.changed.ships))[:_MOST_HEADS]:
        name = f"{found.heads[row]}{' *' if found.heads[row] in moved else ''}"
        now = found.ships[row] + found.changed.ships[row]
        table.add_row(name, f"{found.ships[row]:.4f}", f"{now:.4f}", f"{found.head_weights[row]:.1%}")
    table.add_row("rounding", "", f"within {found.floor.ships:.4f}", f"up to {found.floor.weights:.1%}")
    return table


def _neurons(found: Comparison) -> Table:
    """Show the neurons whose activation changed most on harmful prompts beyond what rounding does to the same
    neuron.
    """
    harmful, harmless, floor = found.changed.neurons_harmful, found.changed.neurons_harmless, found.floor.neurons
    table = _table(
        "neurons that changed most on harmful prompts",
        "block.neuron",
        "harmful",
        "harmless",
        "rounding",
        "weights moved",
    )
    excess = harmful - floor
    for place in np.argsort(-excess, axis=None)[:_MOST_NEURONS]:
        block, neuron = np.unravel_index(place, excess.shape)
        if excess[block, neuron] > 0:
            numbers = (each[block, neuron] for each in (harmful, harmless, floor))
            weights = f"{found.neuron_weights[block, neuron]:.1%}"
            table.add_row(f"{block}.{neuron}", *(f"{number:.3f}" for number in numbers), weights)
    return table
