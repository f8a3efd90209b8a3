"""The results as tables, in `docs/benchmarks.md` between two markers, with the charts beside it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cost.chart import draw
from benchmarks.cost.goals import goal_of
from benchmarks.cost.results import PLAIN
from benchmarks.cost.subjects import TITLES
from benchmarks.document import write_between

BEGIN, END = "<!-- results: written by make bench -->", "<!-- end of results -->"

_FIGURES = {
    "first_token": "time to first token",
    "per_token": "time per token",
    "requests_per_s": "requests/s",
    "whole": "whole batch",
    "prefill": "prefill",
    "step": "decode step",
}
_ARMS = {
    "control": "control",
    "guarded": "guarded",
    "eager": "eager mode alone",
    "hooks": "eager, forward hooks",
    "host_copy": "eager, copy to the host",
    "judge": "judge model first",
    "small_judge": "0.1× judge first",
}
_CLIENT_ARMS = ("control", "guarded", "judge", "small_judge")
_FACTORS = {
    "prompt_length": "one prompt of {} tokens",
    "concurrency": "{} at once",
    "mix": "{}",
    "blocked": "{} blocked",
    "steered": "{} steered",
    "watched": "{}, every answer watched",
}
_COMPARED = {"probes": "number of probes", "channels": "width of a probe", "alternatives": "alternatives"}


def tables(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    client = (
        "as clients see it, ratio to unguarded | "
        + " | ".join(_ARMS[arm] for arm in _CLIENT_ARMS)
        + " | pairs, starts | goal"
    )
    engine = (
        "in the engine, ratio to unguarded | control | guarded | its prefill | decode step | more steps | pairs | goal"
    )
    compared = "in the engine, ratio to unguarded | whole batch | prefill | decode step | pairs | goal"
    absolute = "absolute, p50 and p99 | unguarded | guarded"
    return "\n\n".join(
        [
            f"{found['machine']}. Code {found['code']}, {found['date'][:10]}.",
            _rows(client, _client(found)),
            _rows(engine, _engine(found)),
            _rows(compared, _compared(found)),
            _rows(absolute, _absolutes(found)),
        ]
    )


def write(found: dict[str, Any], document: Path) -> None:
    """Replace the results in `document`, and draw their charts beside it.

    Raises `ValueError` where it has no markers.
    """
    folder = document.with_suffix("")
    charts = [
        f"![{TITLES[name]}: ratio to unguarded by factor]({folder.name}/{name}.svg)" for name in found["subjects"]
    ]
    write_between(document, BEGIN, END, "\n\n".join([*charts, tables(found)]))
    folder.mkdir(exist_ok=True)
    for name, parts in found["subjects"].items():
        draw(TITLES[name], parts, folder / f"{name}.svg")


def _rows(header: str, rows: Iterable[str]) -> str:
    rule = " | ".join(["---"] * len(header.split("|")))
    return "\n".join(f"| {row} |" for row in (header, rule, *rows))


def _levels(found: dict[str, Any], part: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for subject in TITLES:
        for level, each in found["subjects"].get(subject, {}).get(part, {}).items():
            yield subject, level, each


def _client(found: dict[str, Any]) -> Iterator[str]:
    for subject, level, each in _levels(found, "http"):
        for figure, values in each["figures"].items():
            cells = " | ".join(_cell(values["ratio"].get(arm)) for arm in _CLIENT_ARMS)
            goal = _goal(subject, "http", level, figure, "guarded", values["ratio"])
            name = f"{TITLES[subject]}, {level}, {_FIGURES[figure]}"
            yield f"{name} | {cells} | {each['pairs']}, {each['starts']} | {goal}"


def _engine(found: dict[str, Any]) -> Iterator[str]:
    for part, words in _FACTORS.items():
        for subject, level, each in _levels(found, part):
            ratios = {figure: values["ratio"] for figure, values in each["figures"].items()}
            cells = [_cell(ratios["whole"][arm]) for arm in ("control", "guarded")]
            cells += [_cell(ratios.get(figure, {}).get("guarded")) for figure in ("prefill", "step")]
            more = each["more_steps"]["guarded"]
            goal = _goal(subject, part, level, "whole", "guarded", ratios["whole"])
            name = f"{TITLES[subject]}, {words.format(level)}"
            yield f"{name} | {' | '.join(cells)} | {more:+.0f} | {each['pairs']} | {goal}"


def _compared(found: dict[str, Any]) -> Iterator[str]:
    for part in _COMPARED:
        for subject, level, each in _levels(found, part):
            ratios = {figure: values["ratio"] for figure, values in each["figures"].items()}
            for arm in ratios["whole"]:
                cells = " | ".join(_cell(ratios.get(figure, {}).get(arm)) for figure in ("whole", "prefill", "step"))
                goal = _goal(subject, part, level, "whole", arm, ratios["whole"])
                yield f"{TITLES[subject]}, {_ARMS.get(arm, arm)} | {cells} | {each['pairs']} | {goal}"


def _absolutes(found: dict[str, Any]) -> Iterator[str]:
    for subject, level, each in _levels(found, "http"):
        for figure, values in each["figures"].items():
            scale, unit = (1, "/s") if figure == "requests_per_s" else (1e3, " ms")
            arms = (values["quantiles"][arm] for arm in (PLAIN, "guarded"))
            cells = " | ".join(f"{arm['p50'] * scale:.1f}{unit}, {arm['p99'] * scale:.1f}{unit}" for arm in arms)
            yield f"{TITLES[subject]}, {level}, {_FIGURES[figure]} | {cells}"


def _cell(spread: dict[str, Any] | None) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})" if spread else ""


def _goal(subject: str, part: str, level: str, figure: str, arm: str, ratios: dict[str, Any]) -> str:
    """Return the goal for an arm's median ratio and whether it is met; nothing where there is none."""
    goal = goal_of(subject, part, level, figure, arm)
    if goal is None or arm not in ratios:
        return ""
    return f"{goal.words}: {'met' if goal.holds(ratios[arm]['median']) else 'missed'}"
