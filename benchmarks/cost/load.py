"""The client side: one request with its times, and many at once."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.cost.batches import Prompt, judge_prompt
from benchmarks.cost.points import Load
from benchmarks.cost.subjects import MODEL

TIMEOUT = aiohttp.ClientTimeout(600)


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one streamed request, in seconds."""

    first_token: float
    per_token: float


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one server, and before it, if there is one, another whose model judges."""

    session: aiohttp.ClientSession
    url: str
    judge_url: str | None = None

    async def timed(self, prompt: Prompt, max_tokens: int) -> Timing:
        """Send one prompt of token ids and time its stream, the judge's answer included."""
        began = time.perf_counter()
        if self.judge_url is not None:
            # What is done today: wait for the judge's one token, then generate.
            await _stream(self.session, self.judge_url, judge_prompt(prompt), 1)
        first, last = await _stream(self.session, self.url, prompt, max_tokens)
        return Timing(first - began, (last - first) / max(max_tokens - 1, 1))

    async def whole(self, prompt: Prompt, max_tokens: int) -> None:
        """Send one prompt and wait for its whole answer, not streamed: as little work around the engine as there can
        be.
        """
        if self.judge_url is not None:
            await _whole(self.session, self.judge_url, judge_prompt(prompt), 1)
        await _whole(self.session, self.url, prompt, max_tokens)


async def ask(client: Client, prompts: Sequence[Prompt], max_tokens: int, load: Load) -> dict[str, float]:
    """Ask all of `prompts` and return requests per second and, of streams, the medians of their times."""
    limit = asyncio.Semaphore(load.at_once)

    async def one(prompt: Prompt) -> Timing | None:
        async with limit:
            if load.streamed:
                return await client.timed(prompt, max_tokens)
            await client.whole(prompt, max_tokens)
            return None

    began = time.perf_counter()
    timings = [timing for timing in await asyncio.gather(*map(one, prompts)) if timing]
    figures = {"requests_per_s": len(prompts) / (time.perf_counter() - began)}
    if timings:
        figures["first_token"] = statistics.median(timing.first_token for timing in timings)
        figures["per_token"] = statistics.median(timing.per_token for timing in timings)
    return figures


async def _stream(session: aiohttp.ClientSession, url: str, prompt: Prompt, max_tokens: int) -> tuple[float, float]:
    """Return when the first chunk came and when the stream ended.

    Raises `RuntimeError` on any answer but a whole one.
    """
    first = 0.0
    async with session.post(f"{url}/v1/completions", json=_body(prompt, max_tokens, stream=True)) as reply:
        async for line in reply.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
    if reply.status != 200 or not first:
        raise RuntimeError(f"status {reply.status}, and no token")
    return first, time.perf_counter()


async def _whole(session: aiohttp.ClientSession, url: str, prompt: Prompt, max_tokens: int) -> None:
    async with session.post(f"{url}/v1/completions", json=_body(prompt, max_tokens)) as reply:
        answer = await reply.json()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {answer}")


def _body(prompt: Prompt, max_tokens: int, *, stream: bool = False) -> dict[str, Any]:
    options = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0, "stream": stream}
    return {"model": MODEL, "prompt": list(prompt), **options}
