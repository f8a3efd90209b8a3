"""`python -m benchmarks.cost`: take the pairs that are missing, then say what they show."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.cost import measures, report
from benchmarks.cost.points import PARTS, Point, chosen, count, seconds
from benchmarks.cost.results import measure, results
from benchmarks.cost.subjects import SUBJECTS, Subject
from benchmarks.machine import machine
from benchmarks.records import Records, code_digest

_QUICK, _QUICK_LONGEST_S = 2, 20.0
_PARTS_HELP = "; ".join(f"{name}: {words}" for name, words in PARTS.items())

Missing = tuple[Point, range]
"""A point, and the numbers of its pairs that are to be taken."""
Through = Callable[[Subject, Sequence[Point], Path, int], AbstractContextManager[measures.TakePair]]


def main(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Two pairs of each that does not take long, to see that it runs; proves nothing."),
    ] = False,
    work: Annotated[Path, typer.Option(help="Where models, logs, pairs and results go.")] = Path(".bench"),
    document: Annotated[Path | None, typer.Option(help="Document to write tables and charts into.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A subject ({', '.join(SUBJECTS)}), a part, subject.part, or subject.part.level, as "
            f"'lab.blocked.100 %'; repeatable. Parts: {_PARTS_HELP}."
        ),
    ] = None,
    times: Annotated[
        int, typer.Option(min=1, help="So many times the pairs: intervals of a half, for four times the time.")
    ] = 1,
    starts: Annotated[
        int,
        typer.Option(min=1, help="How often servers start anew: what a start finds counts for more than the guard."),
    ] = 6,
) -> None:
    """Measure what the guard costs: guarded against unguarded vLLM, interleaved, as paired ratios with their spread.

    Every pair is kept as soon as it is whole: a run that is cut off goes on where it stopped, unless the code has
    changed.
    """
    try:
        asked = chosen(only or [], list(SUBJECTS))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--only") from error
    work.mkdir(exist_ok=True)
    console = Console()
    records = Records(work / ("quick.jsonl" if quick else "pairs.jsonl"), _about())
    if records.set_aside:
        console.print(f"The code or the machine changed: earlier pairs were set aside in {records.set_aside}.")
    for subject, own in asked.items():
        due = _due(subject, own, times, quick=quick)
        _measure(subject, due, records, work, console, starts=1 if quick else starts)
    found = results(records)
    (work / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    console.print(report.tables(found), soft_wrap=True)
    if document and not quick:
        report.write(found, document)


def _due(subject: str, asked: Sequence[Point], times: int, *, quick: bool) -> list[tuple[Point, int]]:
    """Return the points with the number of pairs that there shall be of each."""
    if quick:
        return [(point, _QUICK) for point in asked if seconds(point, subject) <= _QUICK_LONGEST_S]
    return [(point, count(point, subject, times)) for point in asked]


def _measure(
    name: str, asked: Sequence[tuple[Point, int]], records: Records, work: Path, console: Console, *, starts: int
) -> None:
    """Take those pairs of a subject's points that the records lack: first through servers, which start anew so many
    times.
    """
    in_servers, in_engines = [(p, n) for p, n in asked if p.load], [(p, n) for p, n in asked if not p.load]
    plan = [(measures.through_servers, in_servers, share) for share in _shares(starts)]
    plan += [(measures.through_engines, in_engines, 1.0)]
    for round_, (through, own, share) in enumerate(plan):
        missing = []
        for point, number in own:
            due = math.ceil(share * number)
            done = len(records.pairs(measure(name, point.part, point.level)))
            if done < due:
                missing.append((point, range(done, due)))
        if missing:
            subject = SUBJECTS[name](work)
            with _progress(console) as progress, _started(progress, subject, through, missing, work, round_) as take:
                _take(subject, take, missing, records, progress)


def _shares(starts: int) -> list[float]:
    """Return which share of all pairs there shall be after each of the starts."""
    return [(number + 1) / starts for number in range(starts)]


@contextmanager
def _started(
    progress: Progress, subject: Subject, through: Through, missing: Sequence[Missing], work: Path, round_: int
) -> Iterator[measures.TakePair]:
    starting = progress.add_task(f"{subject.title}: starting, warming up", total=None, unit="")
    with through(subject, [point for point, _ in missing], work, round_) as take:
        progress.remove_task(starting)
        yield take


def _take(
    subject: Subject, take: measures.TakePair, missing: Sequence[Missing], records: Records, progress: Progress
) -> None:
    """Take these pairs. The first bar counts expected seconds: how long all of it will take is read there."""
    start = records.new_start()
    left = round(sum(seconds(point, subject.name) * len(numbers) for point, numbers in missing))
    whole = progress.add_task(f"{subject.title}: all of this", total=left, unit="s expected")
    for point, numbers in missing:
        title = f"{subject.title}: {point.part}, {point.level}"
        task = progress.add_task(title, total=numbers.stop, completed=numbers.start, unit="pairs")
        for number in numbers:
            records.add(measure(subject.name, point.part, point.level), take(point, number), start)
            progress.advance(task)
            progress.advance(whole, seconds(point, subject.name))
        progress.remove_task(task)


def _progress(console: Console) -> Progress:
    done = TextColumn("{task.completed:.0f} of {task.total} {task.fields[unit]}")
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn(), TimeRemainingColumn())
    # Pairs take from a tenth of a second to minutes: what is left is told from the last twenty minutes.
    return Progress(*columns, console=console, speed_estimate_period=1200)


def _about() -> dict[str, str]:
    """Say what is measured, and on what: pairs that differ in this are not pairs of one run."""
    return {"machine": machine(), "code": code_digest()}


if __name__ == "__main__":
    typer.run(main)
