"""`python -m benchmarks`: take the pairs that are missing, then say what they show."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import measures, report, subjects
from benchmarks.machine import machine
from benchmarks.records import Records, code_digest
from benchmarks.results import results
from benchmarks.subjects import Subject

_SUBJECTS = {"half_billion": subjects.half_billion, "lab": subjects.lab}
_THROUGH = {
    "latency": measures.through_servers,
    "throughput": measures.through_servers,
    "steps": measures.through_engines,
}
_FULL = {
    "half_billion": {"latency": 30, "throughput": 15, "steps": 12},
    "lab": {"latency": 300, "throughput": 40, "steps": 60},
}
_QUICK = 3


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few pairs of each, to see that it runs; proves nothing.")
    ] = False,
    work: Annotated[Path, typer.Option(help="Where models, logs, pairs and results go.")] = Path(".bench"),
    document: Annotated[Path | None, typer.Option(help="Document to write the tables into.")] = None,
    only: Annotated[str | None, typer.Option(help=f"One subject: {', '.join(_SUBJECTS)}.")] = None,
) -> None:
    """Measure what the guard costs: guarded against unguarded vLLM, interleaved, as paired ratios with their spread.

    Every pair is kept as soon as it is whole: a run that is cut off goes on where it stopped, unless the code has changed.
    """
    if only not in (None, *_SUBJECTS):
        raise typer.BadParameter(f"{only!r} is none of {', '.join(_SUBJECTS)}", param_hint="--only")
    work.mkdir(exist_ok=True)
    console = Console()
    records = Records(work / ("quick.jsonl" if quick else "pairs.jsonl"), _about())
    if records.set_aside:
        console.print(f"The code or the machine changed: earlier pairs were set aside in {records.set_aside}.")
    for name, make in _SUBJECTS.items():
        if only in (None, name):
            wanted = dict.fromkeys(_FULL[name], _QUICK) if quick else _FULL[name]
            _measure(make(work), wanted, records, work, console)
    found = results(records)
    (work / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    console.print(report.table(found))
    if document and not quick:
        report.write(found, document)


def _measure(subject: Subject, wanted: dict[str, int], records: Records, work: Path, console: Console) -> None:
    """Take those of the `wanted` pairs of each measure that the records lack."""
    missing = [name for name, count in wanted.items() if len(records.pairs(_key(subject, name))) < count]
    for through in dict.fromkeys(_THROUGH[name] for name in missing):
        names = [name for name in missing if _THROUGH[name] is through]
        with _progress(console) as progress:
            starting = progress.add_task(f"{subject.title}: starting two engines, warming up", total=None)
            with through(subject, work) as takers:
                progress.remove_task(starting)
                for name in names:
                    done, total = len(records.pairs(_key(subject, name))), wanted[name]
                    task = progress.add_task(f"{subject.title}: {name}", total=total, completed=done)
                    for number in range(done, total):
                        records.add(_key(subject, name), takers[name](number))
                        progress.advance(task)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("pairs"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def _key(subject: Subject, measure: str) -> str:
    return f"{subject.name}.{measure}"


def _about() -> dict[str, str]:
    """Say what is measured, and on what: pairs that differ in this are not pairs of one run."""
    return {"machine": machine(), "code": code_digest()}


if __name__ == "__main__":
    typer.run(main)
