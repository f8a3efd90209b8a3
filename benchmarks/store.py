"""`python -m benchmarks.store`: what the decision store costs a verdict, and how it reads with a million decisions.

It fills a new store, times what the sink takes of whoever records, what the writer sustains, and each question that the
console asks. `--store` names an empty PostgreSQL database; without it a SQLite file is made, and deleted afterwards.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from sqlalchemy import Engine

from benchmarks.document import write_between
from benchmarks.machine import machine
from guard.journal import Decision
from guard.policy import Policy
from guard.store.batch import Batches
from guard.store.counting import counts
from guard.store.engine import open_store
from guard.store.filters import Filters
from guard.store.label import GivenLabel, Label, Labels
from guard.store.migration import upgrade
from guard.store.reader import Reader
from guard.store.retention import Retention, prune
from guard.store.review import borderline, labelled
from guard.store.scores import scores
from guard.store.sink import StoreSink
from guard.store.stored import StoredDecision
from guard.verdict import Action, Mode, Verdict

_MARKS = "<!-- store: written by python -m benchmarks.store -->", "<!-- end of store -->"
_BATCH, _REPEATS, _TENANTS, _PROBES = 256, 5, 50, 8
_SPAN = timedelta(days=7)
Questions = dict[str, Callable[[], object]]


def main(
    rows: Annotated[int, typer.Option(min=1000, help="Decisions in the store.")] = 1_000_000,
    store: Annotated[str, typer.Option(help="An empty PostgreSQL database; a SQLite file where none is named.")] = "",
    document: Annotated[Path | None, typer.Option(help="Write the tables into this document.")] = None,
) -> None:
    """Fill a store, and time it."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_store(store or f"sqlite:///{folder}/decisions.db")
        upgrade(engine)
        lines = [f"{engine.dialect.name}, {rows:,} decisions of {_PROBES} scores; {machine()}", ""]
        lines += [recording(engine, min(rows, 20_000)), filling(engine, rows), "", "| question | median | longest |"]
        lines.append("| --- | --- | --- |")
        for name, ask in questions(engine, rows).items():
            lines.append(f"| {name} | {_timed(ask)} |")
            console.print(lines[-1], highlight=False, soft_wrap=True)
        lines += ["", pruning(engine, rows)]
        engine.dispose()
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    if document:
        write_between(document, *_MARKS, "\n".join(lines))


def recording(engine: Engine, number: int) -> str:
    """Time `StoreSink.record` while its thread writes, call by call, at 2,000 calls a second."""
    made, took = list(_decisions(number)), []
    sink = StoreSink(engine, capacity=number)
    for each in made:
        time.sleep(0.0005)
        began = time.perf_counter_ns()
        sink.record(each)
        took.append((time.perf_counter_ns() - began) / 1000)
    sink.close(120)
    median, late, latest = (float(np.quantile(took, share)) for share in (0.5, 0.99, 1.0))
    return (
        f"`StoreSink.record` takes {median:.2f} µs, 99 % of {number:,} calls at most {late:.2f} µs, the longest "
        f"{latest:.0f} µs; dropped: {sum(sink.status().dropped.values())}"
    )


def filling(engine: Engine, rows: int) -> str:
    """Write so many decisions as the sink's thread does, and return how fast that went."""
    batches, took = Batches(engine), 0.0
    for batch in _stored(rows):
        began = time.perf_counter()
        batches.write(batch)
        took += time.perf_counter() - began
    ids = [f"fge_{number:024x}" for number in range(0, rows, max(1, rows // 2000))]
    kinds = (Label.BENIGN, Label.HARMFUL)
    Labels(engine).give([GivenLabel(each, kinds[at % 2], "bench", "bench") for at, each in enumerate(ids)])
    return f"the writer sustains {rows / took:,.0f} decisions/s, {_BATCH} in a transaction"


def questions(engine: Engine, rows: int) -> Questions:
    """Return what the console asks."""
    reader, now = Reader(engine), datetime.now(UTC)
    middle = reader.recent(1)[0].key - int(_SPAN / timedelta(microseconds=2)) * 2048
    few, hour = Filters(tenant="tenant-7"), Filters(since=now - timedelta(hours=1))
    return {
        "the last 100 decisions": lambda: reader.recent(100),
        "100 decisions from the middle on": lambda: reader.recent(100, before=middle),
        "the last 100 of one tenant in 50": lambda: reader.recent(100, few),
        "the last 100 of a tenant that has none": lambda: reader.recent(100, Filters(tenant="nobody")),
        "one decision by its event id": lambda: reader.decision(f"fge_{rows // 2:024x}"),
        "one probe's last 100,000 scores": lambda: scores(engine, "probe_3", 100_000),
        "one probe's scores in all decisions": lambda: scores(engine, "probe_3", rows),
        "one probe's scores of one tenant, all": lambda: scores(engine, "probe_3", rows, few),
        "counts by action and minute, the last hour": lambda: counts(engine, hour),
        "counts by action and hour, everything": lambda: counts(engine, every=timedelta(hours=1)),
        "counts by action and minute, everything": lambda: counts(engine),
        "counts by action and tenant, everything": lambda: counts(engine, by=("action", "tenant"), every=_SPAN),
        "the 50 borderline ones of the last 100,000": lambda: borderline(engine, "probe_3", 0.5, 50),
        "all that have a label (2,000)": lambda: labelled(engine),
    }


def pruning(engine: Engine, rows: int) -> str:
    """Delete a tenth while a batch is written every 20 ms, and return how fast, and how long a batch took then."""
    done = threading.Thread(target=prune, args=(engine, Retention(age=None, decisions=rows - rows // 10)))
    batches, late = Batches(engine), datetime.now(UTC) + timedelta(hours=1)
    took: list[float] = []
    began = time.perf_counter()
    done.start()
    while done.is_alive():
        number = len(took)
        batch = [_one(rows + 10 * number + each, late, np.zeros(_PROBES)) for each in range(10)]
        start = time.perf_counter()
        batches.write(batch)
        took.append(time.perf_counter() - start)
        time.sleep(0.02)
    speed = rows // 10 / (time.perf_counter() - began)
    return (
        f"pruning deletes {speed:,.0f} decisions/s; a batch of 10 written meanwhile takes "
        f"{1000 * statistics.median(took):.0f} ms, the longest {1000 * max(took):.0f} ms"
    )


def _timed(ask: Callable[[], Any]) -> str:
    took = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        ask()
        took.append(1000 * (time.perf_counter() - began))
    return f"{statistics.median(took):,.0f} ms | {max(took):,.0f} ms"


def _stored(rows: int) -> Iterator[list[StoredDecision]]:
    draws, begin = np.random.default_rng(0), datetime.now(UTC) - _SPAN
    for first in range(0, rows, _BATCH):
        numbers = range(first, min(first + _BATCH, rows))
        values = draws.normal(size=(len(numbers), _PROBES))
        yield [_one(each, begin + _SPAN * (each / rows), value) for each, value in zip(numbers, values, strict=True)]


def _one(number: int, at: datetime, values: np.ndarray[Any, np.dtype[np.float64]]) -> StoredDecision:
    action = Action.BLOCK if values[0] > 2 else Action.FLAG if values[0] > 1.5 else Action.ALLOW
    return StoredDecision(
        event_id=f"fge_{number:024x}",
        decision=action,
        action=action,
        mode=Mode.ENFORCE,
        policy="benchmark@1",
        at=at,
        scores={f"probe_{probe}": float(value) for probe, value in enumerate(values)},
        request_id=f"chatcmpl-{number:032x}",
        tenant=f"tenant-{number * 2654435761 % _TENANTS}",
        route="/v1/chat/completions",
        model="served",
        rule=None if action is Action.ALLOW else "harmful",
        policy_digest="0123456789abcdef",
        replica="pod-1",
        prompt_tokens=100,
        seconds=0.1,
    )


def _decisions(number: int) -> Iterator[Decision]:
    rule = {"name": "r", "action": "flag", "when": {"probe_0": {"above": 0}}}
    policy = Policy.model_validate({"name": "benchmark", "version": "0", "rules": [rule]})
    for each in range(number):
        found = {f"probe_{probe}": 0.5 for probe in range(_PROBES)}
        verdict = Verdict(Action.FLAG, Action.FLAG, Mode.ENFORCE, found, policy.label, f"fgr_{each:024x}")
        yield Decision(verdict, policy, request_id=f"chatcmpl-{each:032x}", at=datetime.now(UTC) - 2 * _SPAN)


if __name__ == "__main__":
    typer.run(main)
