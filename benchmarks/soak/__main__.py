"""`python -m benchmarks.soak`: soak the guarded lab model, and say what does not hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from benchmarks.cost.subjects import LAB
from benchmarks.document import write_between
from benchmarks.soak import report
from benchmarks.soak.run import Progress, Report, Soaked, soak
from benchmarks.soak.server import Subject
from probes.errors import ForeguardError

_PROMPTS = LAB.parent / "prompts"
_POLICY = Path("examples/policy.yaml")
_FULL = 52_000
_INTERRUPTED = 130


def main(
    requests: Annotated[int, typer.Option(min=500, help="How many requests, at least.")] = _FULL,
    work: Annotated[Path, typer.Option(help="Where artifact, logs and results go.")] = Path(".bench/soak"),
    document: Annotated[Path | None, typer.Option(help="Document to write the result into.")] = None,
    eager: Annotated[
        bool, typer.Option("--eager", help="Do not compile the model: starts faster, serves slower.")
    ] = False,
) -> None:
    """Load the guarded lab model to saturation and check the books, the memory, and that nothing is left at rest.

    Ends with status 1 if something does not hold. Ctrl-C stops it, the server and the client.
    """
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    try:
        subject = Subject(LAB, _calibrated(work, console), _POLICY, eager=eager)
        with _shown(console, requests) as show:
            found = soak(subject, requests, _PROMPTS / "train.jsonl", work, show)
    except KeyboardInterrupt:
        console.print("Interrupted; server and client have been stopped.")
        raise typer.Exit(_INTERRUPTED) from None
    except ForeguardError as error:
        console.print(str(error), style="red")
        raise typer.Exit(2) from error
    _keep(found, work)
    text = report.markdown(found)
    console.print(text, soft_wrap=True, markup=False)
    for surprise in found.mixed.surprises:
        console.print(f"not as it must be: {surprise}", markup=False)
    if document is not None:
        write_between(document, report.BEGIN, report.END, text)
    broken = [check for check in found.checks if not check.holds]
    for check in broken:
        console.print(f"does not hold: {check.what}: {check.numbers}", style="red", markup=False)
    if broken:
        raise typer.Exit(1)


def _calibrated(work: Path, console: Console) -> Path:
    """Return the artifact of the lab model, calibrated as in the demo: once, in about two minutes."""
    artifact = work / "artifact"
    if not (artifact / "manifest.json").exists():
        console.print("Calibrating the lab model")
        splits = [w for split in ("train", "validation", "test") for w in (f"--{split}", f"{_PROMPTS / split}.jsonl")]
        command = ["calibrate", str(LAB), *splits, "--out", str(artifact), "--limit", "2000"]
        subprocess.run([str(Path(sys.executable).with_name("foreguard")), *command], check=True)  # noqa: S603 - our own
    return artifact


@contextmanager
def _shown(console: Console, requests: int) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("starting", total=requests)

        def show(what: str, progress: Progress | None) -> None:
            if progress is not None:
                resident = sum(progress.resident_mb.values())
                what = f"{what}, {progress.in_flight} in flight, {resident:.0f} MB"
                bar.update(task, completed=progress.answered)
            bar.update(task, description=what)

        yield show


def _keep(found: Soaked, work: Path) -> None:
    """Write everything that was seen, for whoever wants to know more than the report says."""
    seen = {
        "seconds": found.seconds,
        "bulk": dict(found.bulk),
        "sent": dict(found.mixed.sent),
        "cut": dict(found.mixed.cut),
        "decisions": dict(found.mixed.decisions),
        "ledger": found.books.after.ledger,
        "checks": [asdict(check) for check in found.checks],
        "growth": {name: asdict(grew) for name, grew in found.growth.items()},
        "grown_types": found.grown_types,
        "rest": {"before": asdict(found.before), "after": asdict(found.after)},
        "samples": [asdict(sample) for sample in found.samples],
        "in_flight": found.in_flight,
    }
    (work / "result.json").write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
