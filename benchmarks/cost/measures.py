"""How a pair of a point is taken, through servers or through engines: all its arms one after another, with the same
work.

Each taker is a function of a point and a pair's number. Work and order follow from the number, so that a run that goes
on asks what an unbroken run would have asked.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import aiohttp

from benchmarks.cost.batches import Request, prompts, requests, shared_prefix
from benchmarks.cost.engines import Engines, Steps, engines
from benchmarks.cost.guards import CHANNELS
from benchmarks.cost.load import TIMEOUT, Client, ask
from benchmarks.cost.points import Point
from benchmarks.cost.servers import Servers, servers, warm
from benchmarks.cost.subjects import Subject
from benchmarks.records import Arms

TakePair = Callable[[Point, int], Arms]

_LETS_PASS = ("guarded", "probes_1", "probes_16", "probes_64", "every_block", *CHANNELS, "watching")
_WARM_UP_TOKENS = 2048
"""In the prompts of what is measured: to warm up with more would take as long as measuring it."""


@contextmanager
def through_servers(subject: Subject, points: Sequence[Point], work: Path, round_: int) -> Iterator[TakePair]:
    """Start the servers of `subject` and warm them up with each of the points."""
    needed = {server for point in points for arm, own in point.arms.items() for server in (own, *_judge(arm))}
    with servers(subject, needed, work, round_) as running:
        take = partial(_take_from_servers, running)
        for point in points:
            if point.work.requests * point.work.prompt_tokens <= _WARM_UP_TOKENS:
                take(point, -1 - round_)
        yield take


@contextmanager
def through_engines(subject: Subject, points: Sequence[Point], work: Path, round_: int) -> Iterator[TakePair]:
    """Start the engines that the points need and warm them up with each of the points that is not too large."""
    del round_  # they share a process and their weights: another start would be no other luck
    names = dict.fromkeys(engine for point in points for engine in point.arms.values())
    with engines(subject, names, work / f"{subject.name}-engines.log") as running:
        take = partial(_take_from_engines, running)
        for point in points:
            # A kernel is made for each new number of rows, and whichever engine is first pays for it.
            if point.work.requests * point.work.prompt_tokens <= _WARM_UP_TOKENS:
                take(point, -1)
        yield take


def _take_from_servers(running: Servers, point: Point, number: int) -> Arms:
    """Ask each arm the same number of new prompts: a prompt of another arm's would be in a prefix cache that they
    share.
    """
    seed = f"{point.part} {point.level} {number}"
    arms: Arms = {}
    for name in random.Random(seed).sample(list(point.arms), len(point.arms)):  # noqa: S311 - orders the arms
        awake = [point.arms[name], *_judge(name)]
        with running.awake(awake) as urls:
            arms[name] = asyncio.run(_asked(point, urls, f"{seed} {name}"))
    return arms


def _judge(arm: str) -> list[str]:
    """Return the server whose model judges for an arm, if one does."""
    return {"judge": ["unguarded"], "small_judge": ["small_judge"]}.get(arm, [])


async def _asked(point: Point, urls: Sequence[str], seed: str) -> dict[str, float]:
    if point.load is None:
        raise ValueError(f"{point.part} is not measured through servers")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT) as session:
        client = Client(session, *urls)
        await warm(client)
        return await ask(client, prompts(point.work, seed), point.work.output_tokens, point.load)


def _take_from_engines(running: Engines, point: Point, number: int) -> Arms:
    """Let all arms' engines make their steps in lockstep, each with a prefix cache of its own."""
    seed = f"{point.part} {point.level} {number}"
    if point.work.cached_tokens:
        prefix = [Request(shared_prefix(point.work, seed), 1)]
        running.run(dict.fromkeys(point.arms.values(), prefix))
    asked = {engine: requests(point.work, arm, engine, seed) for arm, engine in point.arms.items()}
    found = running.run(asked, point.work.at_once)
    for arm, engine in point.arms.items():
        _require_meant(point, arm, engine, found[engine])
    return {arm: found[engine] for arm, engine in point.arms.items()}


def _require_meant(point: Point, arm: str, engine: str, steps: Steps) -> None:
    """Raise `RuntimeError` where the guard did not do what is measured: a guard that sleeps costs nothing."""
    if engine == "acting":
        blocked, steered = point.work.blocked, point.work.steered
        meant = {"block": blocked, "steer": steered, "allow": point.work.requests - blocked - steered}
    elif engine in _LETS_PASS:
        meant = {"allow": point.work.requests}
    else:
        meant = {}
    meant = {action: times for action, times in meant.items() if times}
    if steps["actions"] != meant:
        raise RuntimeError(f"{point.part}, {point.level}, {arm}: meant {meant}, found {steps['actions']}")
