"""The client side: one streamed request with its times, and a block of many at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.subjects import MODEL

Prompt = Sequence[int]
AskTimed = Callable[[aiohttp.ClientSession, str, Prompt, int], Awaitable["Timing"]]
AskWhole = Callable[[aiohttp.ClientSession, str, Prompt, int], Awaitable[None]]
TIMEOUT = aiohttp.ClientTimeout(600)


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one streamed request, in seconds."""

    first_token: float
    per_token: float
    total: float


async def timed(session: aiohttp.ClientSession, url: str, prompt: Prompt, max_tokens: int) -> Timing:
    """Send one prompt of token ids and time its stream. Raises `RuntimeError` on any answer that is not a whole one."""
    began = time.perf_counter()
    first = 0.0
    chunks = 0
    async with session.post(f"{url}/v1/completions", json=_body(prompt, max_tokens, stream=True)) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                chunks += 1
                first = first or time.perf_counter() - began
    total = time.perf_counter() - began
    if reply.status != 200 or chunks < 1:
        raise RuntimeError(f"status {reply.status} and {chunks} chunks")
    return Timing(first, (total - first) / max(max_tokens - 1, 1), total)


async def judged(session: aiohttp.ClientSession, url: str, prompt: Prompt, max_tokens: int) -> Timing:
    """Do what is done today: ask a judge model of the same size first, wait for its one token, then generate."""
    began = time.perf_counter()
    verdict = await timed(session, url, judge_prompt(prompt), 1)
    answer = await timed(session, url, prompt, max_tokens)
    return Timing(verdict.total + answer.first_token, answer.per_token, time.perf_counter() - began)


async def whole(session: aiohttp.ClientSession, url: str, prompt: Prompt, max_tokens: int) -> None:
    """Send one prompt and wait for its whole answer, not streamed: as little work around the engine as there can be."""
    async with session.post(f"{url}/v1/completions", json=_body(prompt, max_tokens)) as reply:
        await reply.read()
        reply.raise_for_status()


async def judged_whole(session: aiohttp.ClientSession, url: str, prompt: Prompt, max_tokens: int) -> None:
    """Ask the judge, then generate, neither streamed."""
    await whole(session, url, judge_prompt(prompt), 1)
    await whole(session, url, prompt, max_tokens)


async def block(
    session: aiohttp.ClientSession, ask: AskWhole, url: str, prompts: Sequence[Prompt], max_tokens: int, at_once: int
) -> float:
    """Ask all of `prompts`, `at_once` at a time, and return requests per second."""
    limit = asyncio.Semaphore(at_once)

    async def one(prompt: Prompt) -> None:
        async with limit:
            await ask(session, url, prompt, max_tokens)

    began = time.perf_counter()
    await asyncio.gather(*map(one, prompts))
    return len(prompts) / (time.perf_counter() - began)


def judge_prompt(prompt: Prompt) -> list[int]:
    """Return what a judge reads. Its instructions precede the prompt, so that its pass shares no prefix with the answer's."""
    return [*prompt[:48][::-1], *prompt]


def _body(prompt: Prompt, max_tokens: int, *, stream: bool = False) -> dict[str, Any]:
    options = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0, "stream": stream}
    return {"model": MODEL, "prompt": list(prompt), **options}
