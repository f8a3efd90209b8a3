"""What is measured of a subject: latency of single requests, throughput under load, and the engine's steps.

Each measure is a function of a pair's number: all arms asked one after another, in random order, with work of the same
kind. Work and order follow from the number, so that a run that goes on asks what an unbroken run would have asked.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.engine import engine
from benchmarks.load import TIMEOUT, AskTimed, AskWhole, block, judged, judged_whole, timed, whole
from benchmarks.records import Arms
from benchmarks.servers import Servers, both, warm
from benchmarks.subjects import Subject

TakePair = Callable[[int], Arms]


@dataclass(frozen=True, slots=True)
class _Arm:
    """One way to answer a request safely, or not: which server it asks, and how."""

    server: str
    timed: AskTimed
    whole: AskWhole


_ARMS = {
    "guarded": _Arm("guarded", timed, whole),
    "unguarded": _Arm("unguarded", timed, whole),
    "judged": _Arm("unguarded", judged, judged_whole),
}


@contextmanager
def through_servers(subject: Subject, work: Path) -> Iterator[dict[str, TakePair]]:
    """Start both servers of `subject` and give the measures that need them: `latency` and `throughput`."""
    with both(subject, work) as servers:
        measures: dict[str, TakePair] = {
            "latency": partial(_latency, servers, subject),
            "throughput": partial(_throughput, servers, subject),
        }
        for take in measures.values():
            take(-1)  # warms up
        yield measures


@contextmanager
def through_engines(subject: Subject, work: Path) -> Iterator[dict[str, TakePair]]:
    """Start both engines of `subject` and give the measure that needs them: `steps`."""
    with (
        engine(subject, guarded=True, log=work / f"{subject.name}-guarded-steps.log") as guarded,
        engine(subject, guarded=False, log=work / f"{subject.name}-unguarded-steps.log") as unguarded,
    ):
        engines = {"guarded": guarded, "unguarded": unguarded}

        def steps(number: int) -> Arms:
            chance = random.Random(number)  # noqa: S311 - makes work, guards nothing
            prompts = _prompts(chance, subject, subject.at_once)
            arms: Arms = {}
            for name in chance.sample(list(engines), len(engines)):
                arms[name] = engines[name].run(prompts, subject.output_tokens)
            return arms

        steps(-1)
        yield {"steps": steps}


def _latency(servers: Servers, subject: Subject, number: int) -> Arms:
    """Time one request of each arm, alone: seconds to the first token, per token after it, and in all."""

    async def one(name: str, session: aiohttp.ClientSession, url: str, chance: random.Random) -> dict[str, Any]:
        [prompt] = _prompts(chance, subject, 1)
        return asdict(await _ARMS[name].timed(session, url, prompt, subject.output_tokens))

    return _pair(servers, f"latency {number}", one)


def _throughput(servers: Servers, subject: Subject, number: int) -> Arms:
    """Count one block of requests of each arm: requests per second."""

    async def many(name: str, session: aiohttp.ClientSession, url: str, chance: random.Random) -> dict[str, Any]:
        prompts = _prompts(chance, subject, subject.block_requests)
        rate = await block(session, _ARMS[name].whole, url, prompts, subject.output_tokens, subject.at_once)
        return {"requests_per_s": rate}

    return _pair(servers, f"throughput {number}", many)


def _pair(servers: Servers, seed: str, ask: Callable[..., Awaitable[dict[str, Any]]]) -> Arms:
    # No two seeds are alike: a prompt that was asked before would be found in the prefix cache, and cost one arm nothing.
    chance = random.Random(seed)  # noqa: S311 - makes work, guards nothing

    async def arm(name: str, url: str) -> dict[str, Any]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
            await warm(session, url)
            return await ask(name, session, url, chance)

    arms: Arms = {}
    for name in chance.sample(list(_ARMS), len(_ARMS)):
        with servers.awake(_ARMS[name].server) as url:
            arms[name] = asyncio.run(arm(name, url))
    return arms


def _prompts(chance: random.Random, subject: Subject, count: int) -> list[list[int]]:
    return [[chance.randrange(100, 4000) for _ in range(subject.prompt_tokens)] for _ in range(count)]
