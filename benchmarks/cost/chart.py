"""The results as one picture per subject: a panel per factor, ratios to unguarded vLLM with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from calibration.report.style import MUTED, styled

_GUARDED, _OTHER = "#0072b2", "#d55e00"
_COLORS = {"guarded": _GUARDED, "control": MUTED}
_LABELS = {"guarded": "guarded", "control": "control (unguarded again)"}
_LINES = {
    ("http", "first_token"): "time to first token, by requests at once",
    ("http", "per_token"): "time per token, by requests at once",
    ("http", "requests_per_s"): "requests/s (more is better)",
    ("prompt_length", "whole"): "engine time, by tokens of one prompt",
    ("concurrency", "whole"): "engine time, by prompts at once",
    ("mix", "whole"): "engine time, by kind of work",
    ("blocked", "whole"): "engine time, by share blocked",
    ("steered", "whole"): "engine time, by share steered",
}
_BARS = {
    "probes": "engine time, by number of probes",
    "channels": "engine time, by width of a probe",
    "alternatives": "engine time, alternatives on the same work",
}
_COLUMNS = 2


def draw(title: str, parts: Mapping[str, Any], path: Path) -> None:
    """Draw the parts that were measured of a subject into the SVG file `path`."""
    lines = [key for key in _LINES if _levels_of(parts, *key)]
    bars = [part for part in _BARS if part in parts]
    rows = -(-(len(lines) + len(bars)) // _COLUMNS)
    with (
        styled(),
        mpl.rc_context({"svg.fonttype": "none"}),
    ):  # a quarter of the size, and words that can be searched for
        figure = Figure(figsize=(10, 2.3 * rows + 0.5), layout="constrained")
        figure.suptitle(f"{title}: ratio to unguarded vLLM, median and 95 % interval", x=0.01, ha="left")
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axis, key in zip(axes, lines, strict=False):
            _draw_lines(axis, _levels_of(parts, *key), _LINES[key])
        for axis, part in zip(axes[len(lines) :], bars, strict=False):
            _draw_bars(axis, parts[part]["base"]["figures"]["whole"]["ratio"], _BARS[part])
        for axis in axes[len(lines) + len(bars) :]:
            axis.set_axis_off()
        if lines:
            figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=2)
        # Without a date, the same results are the same file.
        figure.savefig(path, format="svg", metadata={"Date": None})


def _levels_of(parts: Mapping[str, Any], part: str, figure: str) -> dict[str, Any]:
    """Return the ratios by level, where the part's levels have the figure."""
    levels = parts.get(part, {})
    return {level: each["figures"][figure]["ratio"] for level, each in levels.items() if figure in each["figures"]}


def _draw_lines(axis: Axes, levels: Mapping[str, Any], title: str) -> None:
    for shift, arm in ((-0.06, "control"), (0.06, "guarded")):
        spreads = [ratios[arm] for ratios in levels.values()]
        places = [place + shift for place in range(len(spreads))]
        middle = [spread["median"] for spread in spreads]
        axis.errorbar(places, middle, _bars(spreads), fmt="o", ms=4, capsize=2, color=_COLORS[arm], label=_LABELS[arm])
    axis.set_xticks(range(len(levels)), [level.replace(" at once", "").replace(", ", ",\n") for level in levels])
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.axhline(1, color=MUTED, lw=0.8)
    axis.set_title(title)
    low, high = axis.get_ylim()
    # A ratio of a thousandth is no difference, and must not look like one.
    axis.set_ylim(min(low, 0.97), max(high, 1.03))


def _draw_bars(axis: Axes, ratios: Mapping[str, Any], title: str) -> None:
    spreads = list(ratios.values())
    colors = [_COLORS.get(arm, _OTHER if arm in _ALTERNATIVES else _GUARDED) for arm in ratios]
    middle = [spread["median"] for spread in spreads]
    for place, (spread, color) in enumerate(zip(spreads, colors, strict=True)):
        axis.errorbar([middle[place]], [place], xerr=_bars([spread]), fmt="o", ms=4, capsize=2, color=color)
    axis.set_yticks(range(len(ratios)), [_ALTERNATIVES.get(arm, arm) for arm in ratios])
    axis.invert_yaxis()
    axis.axvline(1, color=MUTED, lw=0.8)
    axis.set_title(title)
    if max(middle) > 1.5:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xticks([tick for tick in (1, 1.1, 1.2, 1.5, 2, 3, 5) if tick < max(middle) * 1.2])
    else:
        low, high = axis.get_xlim()
        axis.set_xlim(min(low, 0.97), max(high, 1.03))


_ALTERNATIVES = {
    "eager": "eager mode alone",
    "hooks": "eager, forward hooks",
    "host_copy": "eager, copy to the host",
    "judge": "judge model first",
    "small_judge": "0.1× judge first",
}


def _bars(spreads: Sequence[Mapping[str, float]]) -> list[list[float]]:
    below = [spread["median"] - spread["low"] for spread in spreads]
    return [below, [spread["high"] - spread["median"] for spread in spreads]]
