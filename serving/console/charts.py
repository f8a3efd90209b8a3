"""Charts as ECharts has them. Each has a description for who cannot see it, and the page shows the numbers beside."""

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

ACTIONS = {"allow": "#4c9f70", "flag": "#d9a521", "steer": "#8e63c7", "block": "#cf3f3f"}
"""Colours by action; the legend names them, so that colour alone tells nothing."""
_INK = "currentColor"
_GRID = "rgba(128,128,128,.3)"

Options = dict[str, Any]


def chart(description: str, options: Options) -> ui.echart:
    """Show a chart."""
    base: Options = {
        "aria": {"enabled": True, "label": {"description": description}},
        "animation": False,
        "backgroundColor": "transparent",
        "textStyle": {"color": _INK, "fontFamily": "system-ui, sans-serif"},
        "tooltip": {"trigger": "axis"},
        "grid": {"left": 8, "right": 16, "top": 40, "bottom": 8, "containLabel": True},
        "legend": {"top": 0, "icon": "roundRect", "itemGap": 24, "textStyle": {"color": _INK}},
    }
    made = ui.echart({**base, **options}, renderer="svg").classes("chart")
    return made.props(f'role="img" aria-label="{description.replace(chr(34), chr(39))}"')


def axis(kind: str, name: str = "", **more: Any) -> Options:
    """Return an axis."""
    return {
        "type": kind,
        "name": name,
        "nameLocation": "middle",
        "nameGap": 26 if kind != "value" or more.pop("below", False) else 40,
        "axisLabel": {"color": _INK, "hideOverlap": True},
        "nameTextStyle": {"color": _INK},
        "axisLine": {"lineStyle": {"color": _INK}},
        "splitLine": {"lineStyle": {"color": _GRID}},
        **more,
    }


def stacked(description: str, times: Sequence[str], counts: Mapping[str, Sequence[int]]) -> ui.echart:
    """Show counts by time, one on the other."""
    series = [
        {
            "name": name,
            "type": "bar",
            "stack": "all",
            "data": list(each),
            "itemStyle": {"color": ACTIONS.get(name, "#888")},
        }
        for name, each in counts.items()
    ]
    options: Options = {"xAxis": axis("category", data=list(times)), "yAxis": axis("value"), "series": series}
    return chart(description, options)


def lines(description: str, times: Sequence[str], values: Mapping[str, Sequence[float]], unit: str) -> ui.echart:
    """Show lines over time."""
    series = [
        {"name": name, "type": "line", "showSymbol": len(times) < 3, "data": list(each)}
        for name, each in values.items()
    ]
    options: Options = {"xAxis": axis("category", data=list(times)), "yAxis": axis("value", unit), "series": series}
    return chart(description, options)
