"""The results, computed from the pairs: ratios to unguarded vLLM with their spread, and quantiles per arm."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from benchmarks.paired import Spread, ratio_by_start, ratio_of_turns
from benchmarks.records import Arms, Records

SEPARATOR = "/"
"""Between subject, part and level in the name of a measure."""

PLAIN = "unguarded"
MOST, LEAST = "64 probes", "1 probe"
FLAT = f"{MOST} against {LEAST}"

_JUDGES = ("judge", "small_judge")


def measure(subject: str, part: str, level: str) -> str:
    """Return the name under which the pairs of a point are recorded."""
    return SEPARATOR.join((subject, part, level))


def results(records: Records) -> dict[str, Any]:
    """Return everything that the pairs show, by subject, part and level."""
    found: dict[str, Any] = {**records.about, "date": datetime.now(UTC).isoformat(timespec="seconds"), "subjects": {}}
    for name in records.measures:
        subject, part, level = name.split(SEPARATOR)
        found["subjects"].setdefault(subject, {}).setdefault(part, {})[level] = _level(
            part, records.pairs(name), records.starts(name)
        )
    return found


def _level(part: str, pairs: Sequence[Arms], starts: Sequence[int]) -> dict[str, Any]:
    figures = pairs if part == "http" else [_of_steps(pair) for pair in pairs]
    found: dict[str, Any] = {"pairs": len(pairs), "starts": len(set(starts)), "figures": {}}
    for figure in figures[0][PLAIN]:
        series = {arm: [pair[arm][figure] for pair in figures] for arm in figures[0]}
        found["figures"][figure] = {
            "ratio": {arm: asdict(spread) for arm, spread in _ratios(series, starts).items()},
            "quantiles": {arm: _quantiles(values) for arm, values in series.items()},
        }
    if part != "http":
        counts = {arm: [_num_steps(pair[arm]) - _num_steps(pair[PLAIN]) for pair in pairs] for arm in pairs[0]}
        found["more_steps"] = {arm: float(np.median(values)) for arm, values in counts.items()}
    return found


def _ratios(series: dict[str, list[Any]], starts: Sequence[int]) -> dict[str, Spread]:
    compare = ratio_of_turns if isinstance(series[PLAIN][0], list) else partial(ratio_by_start, starts=starts)
    ratios = {arm: compare(values, series[PLAIN]) for arm, values in series.items() if arm != PLAIN}
    if MOST in series and LEAST in series:
        ratios[FLAT] = compare(series[MOST], series[LEAST])
    return ratios


def _of_steps(pair: Arms) -> Arms:
    """Return of each arm the seconds of its `whole` batch, of its `prefill`, and of each decode `step` if there are
    any.
    """
    decodes = all(arm["decode"] for name, arm in pair.items() if name not in _JUDGES)
    found = {name: _times(arm, decodes=decodes and name not in _JUDGES) for name, arm in pair.items()}
    plain = found[PLAIN]
    for judge in _JUDGES:
        if judge in found:
            # The judge's pass was measured; the answer that follows it is the unguarded one's.
            before = found[judge]["whole"]
            found[judge] = {**plain, "whole": plain["whole"] + before, "prefill": plain["prefill"] + before}
    return found


def _times(arm: dict[str, Any], *, decodes: bool) -> dict[str, Any]:
    times = {"whole": sum(arm["prefill"]) + sum(arm["decode"]), "prefill": sum(arm["prefill"])}
    return {**times, "step": arm["decode"]} if decodes else times


def _num_steps(arm: dict[str, Any]) -> int:
    return len(arm["prefill"]) + len(arm["decode"])


def _quantiles(values: Sequence[Any]) -> dict[str, float]:
    p50, p99 = np.quantile(np.hstack(values), [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99)}
