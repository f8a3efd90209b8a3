"""One soak: start the server, warm it, look, load it, look again, and say what does not hold."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.soak import memory
from benchmarks.soak.books import Books, Check
from benchmarks.soak.bulk import BULK, Bulk
from benchmarks.soak.insider_api import LEDGER
from benchmarks.soak.kinds import KINDS
from benchmarks.soak.memory import Sample
from benchmarks.soak.mix import Mix, Mixed
from benchmarks.soak.processes import usage
from benchmarks.soak.prompts import Prompts
from benchmarks.soak.rest import Rest, grown, left_behind
from benchmarks.soak.server import Subject, look, soaked_server
from serving.offline.process import ServerProcess

BULK_SHARE = 0.8
BULK_AT_ONCE, MIX_AT_ONCE = 64, 12
_WARM_UPS = 4
"""Of each kind, before the first look: pools open, threads start, code is compiled."""
_LEAD = 2 * MIX_AT_ONCE


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a soak is."""

    answered: int
    in_flight: int
    resident_mb: Mapping[str, float]


Report = Callable[[str, Progress | None], None]


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak found."""

    books: Books
    before: Rest
    after: Rest
    mixed: Mixed
    bulk: Mapping[str, Any]
    samples: list[Sample]
    seconds: float
    in_flight: list[int]
    """Sequences unfinished in vLLM, each second."""

    @property
    def checks(self) -> list[Check]:
        """Everything that must hold."""
        return [
            *self.books.checks(self.mixed, self.bulk),
            *left_behind(self.before, self.after),
            *self._memory(),
        ]

    @property
    def growth(self) -> dict[str, memory.Growth]:
        """How each process's memory grew."""
        return memory.growth(self.samples)

    @property
    def grown_types(self) -> dict[str, list[tuple[str, int]]]:
        """Of which types there are more objects than before, by role."""
        return {
            role: grown(self.before.census[role]["objects"], census["objects"])
            for role, census in self.after.census.items()
        }

    def _memory(self) -> list[Check]:
        if not memory.can_tell(self.samples):
            return []
        return [
            Check(
                f"{name}: memory grows by at most {memory.LIMIT_MB} MB per 1,000 requests",
                found.per_thousand_mb <= memory.LIMIT_MB,
                f"{found.early_mb:.1f} to {found.late_mb:.1f} MB, {found.per_thousand_mb:+.3f} per 1,000",
            )
            for name, found in self.growth.items()
        ]


def soak(subject: Subject, requests: int, prompts: Path, work: Path, report: Report) -> Soaked:
    """Soak `subject` in at least `requests` requests, with logs and prompts in `work`. Raises `ServingError`."""
    drawn = Prompts.load(prompts)
    with soaked_server(subject, work / "server.log", lambda s: report(f"starting, {s:.0f} s", None)) as server:
        mix_quota = requests - int(requests * BULK_SHARE)
        bulk = Bulk(server.url, subject.model, requests - mix_quota, BULK_AT_ONCE, work)
        bulk.write_prompts(drawn)
        return asyncio.run(_Load(server, drawn, bulk, mix_quota, report).run())


@dataclass(slots=True)
class _Load:
    """The load, and what is seen meanwhile."""

    server: ServerProcess
    prompts: Prompts
    bulk: Bulk
    mix_quota: int
    report: Report
    samples: list[Sample] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    bulk_answered: int = 0
    bulk_done: bool = False

    async def run(self) -> Soaked:
        self.report("warming up", None)
        await Mix(self.server.url, self.prompts, _WARM_UPS * len(KINDS), MIX_AT_ONCE, lambda _: True).run()
        self.report("looking", None)
        reading, before = await look(self.server)
        self.report("loading", None)
        mix = Mix(self.server.url, self.prompts, self.mix_quota, MIX_AT_ONCE, self._may_ask)
        began = time.monotonic()
        bulk = await self._load(mix)
        seconds = time.monotonic() - began
        self.report("coming to rest, looking again", None)
        reading_after, after = await look(self.server)
        books = Books(reading, reading_after)
        return Soaked(books, before, after, mix.found, bulk, self.samples, seconds, self.in_flight)

    async def _load(self, mix: Mix) -> Mapping[str, Any]:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch())
            mixing = group.create_task(mix.run())
            found = await self.bulk.run()
            self.bulk_done = True
            await mixing
            watching.cancel()
        return found

    def _may_ask(self, sent: int) -> bool:
        # The mix keeps its share of the load all the way.
        return self.bulk_done or sent <= self.bulk_answered * self.mix_quota / self.bulk.requests + _LEAD

    async def _watch(self) -> None:
        async with aiohttp.ClientSession(self.server.url) as session:
            start: int | None = None
            while True:
                async with session.get(LEDGER) as reply:
                    ledger = await reply.json()
                kinds = ledger["kinds"]
                answered = sum(entry["answered"] for entry in kinds.values())
                start = answered if start is None else start
                self.bulk_answered = kinds.get(BULK, {}).get("answered", 0)
                held = {name: use.resident_bytes / 2**20 for name, use in usage(self.server.pid).items()}
                self.samples.append(Sample(answered - start, held))
                self.in_flight.append(ledger["in_flight"])
                self.report("loading", Progress(answered - start, ledger["in_flight"], held))
                await asyncio.sleep(1)
