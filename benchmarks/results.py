"""The results, computed from the pairs: ratios to unguarded vLLM, quantiles per arm, microseconds per step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.paired import ratio, spread
from benchmarks.records import Arms, Records

_FIGURES = {"latency": ("first_token", "per_token", "total"), "throughput": ("requests_per_s",)}


def results(records: Records) -> dict[str, Any]:
    """Return everything that the pairs show: ratios to unguarded vLLM, quantiles per arm, microseconds per step."""
    found: dict[str, Any] = {**records.about, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    for key in records.measures:
        subject, measure = key.split(".")
        pairs = records.pairs(key)
        found.setdefault(subject, {})[measure] = _steps(pairs) if measure == "steps" else _compared(pairs, measure)
    return found


def _compared(pairs: Sequence[Arms], measure: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for figure in _FIGURES[measure]:
        series = {arm: [pair[arm][figure] for pair in pairs] for arm in pairs[0]}
        plain = series["unguarded"]
        found[figure] = {
            "ratio": {arm: asdict(ratio(values, plain)) for arm, values in series.items() if values is not plain},
            "quantiles": {arm: _quantiles(values) for arm, values in series.items()},
        }
    return found


def _steps(pairs: Sequence[Arms]) -> dict[str, Any]:
    """Compare each batch's steps: seconds added to its prefill in all, and to the median of its decode steps."""
    of: dict[str, Callable[[list[float]], float]] = {"prefill": sum, "decode": lambda steps: float(np.median(steps))}
    found: dict[str, Any] = {}
    for kind, value in of.items():
        series = {arm: [value(pair[arm][kind]) for pair in pairs] for arm in ("guarded", "unguarded")}
        added = np.subtract(series["guarded"], series["unguarded"]) * 1e6
        found[kind] = {"added_us": asdict(spread(added)), "seconds": {arm: _quantiles(v) for arm, v in series.items()}}
    return found


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99), "samples": len(values)}
