"""The two scenarios: a real shape, where the model is the cost, and the lab model at saturation, where the guard is."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks import subjects
from benchmarks.load import MODEL, Timing, block, judged, timed
from benchmarks.paired import Ratio, ratio
from serving.process import ServerProcess, free_port, guarded_command, running, unguarded_command

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a run does."""

    trials: int
    blocks: int
    block_requests: int


FULL = Size(trials=12, blocks=40, block_requests=128)
QUICK = Size(trials=4, blocks=3, block_requests=96)


@contextmanager
def both(model: Path, work: Path, flags: list[str]) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Run a guarded and an unguarded server of the same model side by side; only one is ever asked at a time."""
    artifact = subjects.artifact(model, work / f"{model.name}-artifact")
    policy = subjects.policy(work / "policy.yaml")
    flags = ["--served-model-name", MODEL, *flags]
    with ExitStack() as stack:
        port = free_port()
        command = guarded_command(model, artifact, policy, port, flags)
        guarded = stack.enter_context(running(command, port, work / f"{model.name}-guarded.log"))
        port = free_port()
        command = unguarded_command(model, port, flags)
        unguarded = stack.enter_context(running(command, port, work / f"{model.name}-unguarded.log"))
        yield guarded, unguarded


def real_shape(work: Path, size: Size, progress: Progress) -> dict[str, Any]:
    """Measure 512-token prompts on the 0.5B shape: time to first token and per token alone, throughput at 4 at once."""
    model = subjects.half_billion(work / "half-billion")
    with both(model, work, ["--max-model-len", "1024", "--max-num-seqs", "8"]) as (guarded, unguarded):
        timings = asyncio.run(_trials(guarded.url, unguarded.url, size.trials, progress))
        rates = asyncio.run(_rates(guarded.url, unguarded.url, max(size.blocks // 10, 2), 8, 512, 4, progress))
    guard, plain, judge = timings["guarded"], timings["unguarded"], timings["judged"]
    return {
        "first_token": _compare(guard, plain, lambda t: t.first_token),
        "per_token": _compare(guard, plain, lambda t: t.per_token),
        "judge_first_token": _compare(judge, plain, lambda t: t.first_token),
        "judge_total": _compare(judge, plain, lambda t: t.total),
        "throughput": _as_dict(ratio(rates["guarded"], rates["unguarded"])),
        "first_token_s": {name: _quantiles([t.first_token for t in series]) for name, series in timings.items()},
        "per_token_s": {name: _quantiles([t.per_token for t in series]) for name, series in timings.items()},
    }


def saturated(work: Path, size: Size, progress: Progress) -> dict[str, Any]:
    """Measure the lab model with 64 requests at once: all overhead and hardly any model, the guard's worst case."""
    flags = ["--max-model-len", "1024", "--max-num-seqs", "64"]
    with both(subjects.LAB, work, flags) as (guarded, unguarded):
        rates = asyncio.run(_rates(guarded.url, unguarded.url, size.blocks, size.block_requests, 48, 64, progress))
    return {
        "throughput": _as_dict(ratio(rates["guarded"], rates["unguarded"])),
        "requests_per_s": {name: _quantiles(series) for name, series in rates.items()},
    }


async def _trials(guarded: str, unguarded: str, count: int, progress: Progress) -> dict[str, list[Timing]]:
    arms = {"guarded": (timed, guarded), "unguarded": (timed, unguarded), "judged": (judged, unguarded)}
    series: dict[str, list[Timing]] = {name: [] for name in arms}
    chance = random.Random(0)  # noqa: S311 - orders trials, guards nothing
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as session:
        for trial in range(-1, count):
            progress(f"0.5B shape, single requests: {max(trial, 0)} of {count}")
            for name in chance.sample(list(arms), len(arms)):
                ask, url = arms[name]
                timing = await ask(session, url, _prompt(chance, 512), 16)
                if trial >= 0:  # the first round warms up
                    series[name].append(timing)
    return series


async def _rates(
    guarded: str, unguarded: str, blocks: int, requests: int, length: int, concurrency: int, progress: Progress
) -> dict[str, list[float]]:
    urls = {"guarded": guarded, "unguarded": unguarded}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    chance = random.Random(1)  # noqa: S311 - orders blocks, guards nothing
    for number in range(-1, blocks):
        progress(f"throughput, blocks of {requests}: {max(number, 0)} of {blocks}")
        prompts = [_prompt(chance, length) for _ in range(requests)]
        for name in chance.sample(list(urls), 2):
            rate = await block(urls[name], prompts, 16, concurrency)
            if number >= 0:
                rates[name].append(rate)
    return rates


def _prompt(chance: random.Random, length: int) -> list[int]:
    return [chance.randrange(100, 4000) for _ in range(length)]


def _compare(numerators: list[Timing], denominators: list[Timing], of: Callable[[Timing], float]) -> dict[str, float]:
    return _as_dict(ratio(list(map(of, numerators)), list(map(of, denominators))))


def _as_dict(value: Ratio) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high, "pairs": value.pairs}


def _quantiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99), "min": min(values), "max": max(values)}
