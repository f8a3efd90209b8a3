"""The results as tables, in `docs/benchmarks.md` between two markers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.document import write_between
from benchmarks.subjects import TITLES

BEGIN, END = "<!-- results: written by make bench -->", "<!-- end of results -->"

_FIGURES = {
    "first_token": "time to first token",
    "per_token": "time per output token",
    "total": "whole request",
    "requests_per_s": "requests/s",
}
_ARMS = {"guarded": "guarded", "judged": "judge model first"}
_STEPS = {"prefill": "prefill of a batch, all its steps", "decode": "one decode step"}
_GOALS = {
    ("half_billion", "first_token", "guarded"): "at most 1.02",
    ("half_billion", "requests_per_s", "guarded"): "at least 0.98",
    ("lab", "requests_per_s", "guarded"): "at least 0.90",
}


def table(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    return "\n\n".join(
        [
            f"{found['machine']}. Code {found['code']}, {found['date'][:10]}.",
            _rows("ratio to unguarded vLLM | median | 95 % interval | pairs | goal", _ratios(found)),
            _rows("absolute | unguarded | guarded | judge model first | samples", _absolutes(found)),
            _rows(
                "added by the guard in the engine | median | 95 % interval | batches | unguarded takes", _steps(found)
            ),
        ]
    )


def write(found: dict[str, Any], document: Path) -> None:
    """Replace the results in `document`. Raises `ValueError` where it has no markers."""
    write_between(document, BEGIN, END, table(found))


def _rows(header: str, rows: Iterator[str]) -> str:
    rule = " | ".join(["---"] * len(header.split("|")))
    return "\n".join(f"| {row} |" for row in (header, rule, *rows))


def _figures(found: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for subject, title in TITLES.items():
        measured = {figure: values for each in found.get(subject, {}).values() for figure, values in each.items()}
        for figure, words in _FIGURES.items():
            if figure in measured:
                yield subject, figure, f"{title}, {words}", measured[figure]


def _ratios(found: dict[str, Any]) -> Iterator[str]:
    for subject, figure, words, values in _figures(found):
        for arm, title in _ARMS.items():
            spread, goal = values["ratio"][arm], _GOALS.get((subject, figure, arm), "")
            interval = f"{spread['low']:.3f} to {spread['high']:.3f}"
            yield f"{words}, {title} | {spread['median']:.3f} | {interval} | {spread['pairs']} | {goal}"


def _absolutes(found: dict[str, Any]) -> Iterator[str]:
    for _, figure, words, values in _figures(found):
        scale, unit = (1, "/s") if figure == "requests_per_s" else (1e3, " ms")
        arms = [values["quantiles"][arm] for arm in ("unguarded", "guarded", "judged")]
        for quantile in ("p50", "p99"):
            cells = " | ".join(f"{arm[quantile] * scale:.1f}{unit}" for arm in arms)
            yield f"{words}, {quantile} | {cells} | {arms[0]['samples']}"


def _steps(found: dict[str, Any]) -> Iterator[str]:
    for subject, title in TITLES.items():
        for kind, values in found.get(subject, {}).get("steps", {}).items():
            spread, takes = values["added_us"], values["seconds"]["unguarded"]["p50"] * 1e6
            interval = f"{spread['low']:.0f} to {spread['high']:.0f}"
            yield f"{title}, {_STEPS[kind]} | {spread['median']:.0f} µs | {interval} | {spread['pairs']} | {takes:.0f} µs"
