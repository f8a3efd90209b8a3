"""The benchmark's table in `docs/benchmarks.md`, written between two markers from the JSON results."""

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results: written by make bench -->", "<!-- end of results -->"

_ROWS = (
    ("0.5B shape, time to first token, guarded / unguarded", "real_shape", "first_token", "at most 1.02"),
    ("0.5B shape, time per output token, guarded / unguarded", "real_shape", "per_token", ""),
    ("0.5B shape, requests/s at 4 at once, guarded / unguarded", "real_shape", "throughput", "at least 0.98"),
    ("0.5B shape, time to first token, judge model first / unguarded", "real_shape", "judge_first_token", ""),
    ("0.5B shape, whole request, judge model first / unguarded", "real_shape", "judge_total", ""),
    ("lab model, requests/s at 64 at once, guarded / unguarded", "saturated", "throughput", "at least 0.90"),
)


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        results["machine"],
        "",
        "| what | median ratio | 95 % interval | pairs | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for title, scenario, key, goal in _ROWS:
        value = results[scenario][key]
        lines.append(
            f"| {title} | {value['median']:.3f} | {value['low']:.3f} to {value['high']:.3f} | {value['pairs']:.0f} | {goal} |"
        )
    seconds, rates = results["real_shape"]["first_token_s"], results["saturated"]["requests_per_s"]
    lines += ["", "| what | unguarded | guarded | judge first |", "| --- | --- | --- | --- |"]
    for quantile in ("p50", "p99"):
        times = [f"{seconds[name][quantile] * 1e3:.0f} ms" for name in ("unguarded", "guarded", "judged")]
        lines.append(f"| 0.5B shape, time to first token, {quantile} | {' | '.join(times)} |")
    lines.append(
        f"| lab model, requests/s, median | {rates['unguarded']['p50']:.0f} | {rates['guarded']['p50']:.0f} | |"
    )
    return "\n".join(lines)


def write(results: dict[str, Any], document: Path) -> None:
    """Replace the results in `document`. Raises `ValueError` where it has no markers."""
    text = document.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, foot = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} lacks the markers {BEGIN!r} and {END!r}")
    document.write_text(f"{head}{BEGIN}\n\n{table(results)}\n\n{END}{foot}")
