"""The client side: one streamed request with its times, and a block of many at once."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one streamed request, in seconds."""

    first_token: float
    per_token: float
    total: float


async def timed(session: aiohttp.ClientSession, url: str, prompt: Sequence[int], max_tokens: int) -> Timing:
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


async def judged(session: aiohttp.ClientSession, url: str, prompt: Sequence[int], max_tokens: int) -> Timing:
    """Do what is done today: ask a judge model of the same size first, wait for its one token, then generate."""
    began = time.perf_counter()
    # The judge's instructions precede the prompt, so its pass shares no prefix with the generation.
    verdict = await timed(session, url, [*prompt[:48][::-1], *prompt], 1)
    answer = await timed(session, url, prompt, max_tokens)
    return Timing(verdict.total + answer.first_token, answer.per_token, time.perf_counter() - began)


async def block(url: str, prompts: Sequence[Sequence[int]], max_tokens: int, concurrency: int) -> float:
    """Return requests per second over `prompts`, `concurrency` at a time."""
    limit = asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:

        async def one(prompt: Sequence[int]) -> None:
            async with limit, session.post(f"{url}/v1/completions", json=_body(prompt, max_tokens)) as reply:
                await reply.read()
                reply.raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*map(one, prompts))
        return len(prompts) / (time.perf_counter() - began)


def _body(prompt: Sequence[int], max_tokens: int, *, stream: bool = False) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
    }
