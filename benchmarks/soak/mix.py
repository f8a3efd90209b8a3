"""The soak's own client: every kind of request in turn, several at once, paced to stay a share of the whole load."""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import aiohttp

from benchmarks.soak.insider_api import KIND
from benchmarks.soak.kinds import KINDS, Kind
from benchmarks.soak.prompts import Prompts

_DECISIONS = ("allow", "flag", "steer", "block")
_KEPT_SURPRISES = 20
_TIMEOUT = aiohttp.ClientTimeout(300)


@dataclass(slots=True)
class Mixed:
    """What the client sent and what came back."""

    sent: Counter[str] = field(default_factory=Counter)
    """Requests, by kind."""
    cut: Counter[str] = field(default_factory=Counter)
    """Requests that the client hung up on, by kind; the other ones of a cut kind were answered before."""
    decisions: Counter[str] = field(default_factory=Counter)
    """`x-guardrail-decision` of answers."""
    surprises: list[str] = field(default_factory=list)
    """Answers that are not what their kind must get; the first few."""
    num_surprises: int = 0

    def surprise(self, what: str) -> None:
        """Note an answer that should not be."""
        self.num_surprises += 1
        if len(self.surprises) < _KEPT_SURPRISES:
            self.surprises.append(what)


@dataclass(frozen=True, slots=True)
class Mix:
    """A client that asks until it has asked its quota."""

    url: str
    prompts: Prompts
    quota: int
    at_once: int
    may_ask: Callable[[int], bool]
    """Whether the next request may go out, given how many have: it keeps the mix a share of the load."""
    found: Mixed = field(default_factory=Mixed)

    async def run(self) -> None:
        """Ask the whole quota."""
        turns = itertools.islice(itertools.cycle(KINDS), self.quota)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(self.url, connector=connector, timeout=_TIMEOUT) as session,
            asyncio.TaskGroup() as group,
        ):
            for worker in range(self.at_once):
                group.create_task(self._work(session, turns, random.Random(worker)))  # noqa: S311 - makes work

    async def _work(
        self, session: aiohttp.ClientSession, turns: "itertools.islice[Kind]", chance: random.Random
    ) -> None:
        for kind in turns:
            while not self.may_ask(self.found.sent.total()):
                await asyncio.sleep(0.05)
            self.found.sent[kind.name] += 1
            await ask(session, kind, self.prompts, chance, self.found)


async def ask(
    session: aiohttp.ClientSession, kind: Kind, prompts: Prompts, chance: random.Random, found: Mixed
) -> None:
    """Send one request of a kind and note what came back in `found`."""
    patience = chance.uniform(*kind.cut_after_s) if kind.cut_after_s else None
    try:
        async with asyncio.timeout(patience) as limit:
            await _answer(session, kind, prompts, chance, found)
    except TimeoutError:
        if not limit.expired():
            found.surprise(f"{kind.name}: no answer within {_TIMEOUT.total} s")
        else:
            found.cut[kind.name] += 1
    except aiohttp.ClientError as error:
        found.surprise(f"{kind.name}: {error!r}")


async def _answer(
    session: aiohttp.ClientSession, kind: Kind, prompts: Prompts, chance: random.Random, found: Mixed
) -> None:
    body = kind.body(prompts, chance)
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {KIND: kind.name, "content-type": "application/json"}
    data = _halved(body) if kind.half_body else body
    async with session.post(kind.path, headers=headers, data=data) as reply:
        if reply.status != kind.status:
            found.surprise(f"{kind.name}: status {reply.status}: {(await reply.text())[:300]}")
            return
        decision = reply.headers.get("x-guardrail-decision")
        if decision not in _expected(kind):
            found.surprise(f"{kind.name}: decision {decision}")
        found.decisions[decision or "none"] += 1
        await _read(reply, kind, chance, found)


def _expected(kind: Kind) -> tuple[str | None, ...]:
    """Return what `x-guardrail-decision` may say: nothing, where no prompt reached vLLM."""
    if kind.fails_in_engine:
        return ("unscored",)
    return _DECISIONS if kind.prompts else (None,)


async def _halved(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body[: len(body) // 2]
    await asyncio.sleep(3600)  # the client hangs up long before


async def _read(reply: aiohttp.ClientResponse, kind: Kind, chance: random.Random, found: Mixed) -> None:
    left = chance.randint(*kind.cut_after_chunks) if kind.cut_after_chunks else None
    last = b""
    async for line in reply.content:
        if not line.strip():
            continue
        last = line
        if line.startswith(b"data:"):
            if kind.pause_s:
                await asyncio.sleep(kind.pause_s)
            if left is not None and (left := left - 1) == 0:
                found.cut[kind.name] += 1
                reply.close()
                return
    if not last and kind.status == 200:
        found.surprise(f"{kind.name}: an empty answer")
    elif reply.content_type == "text/event-stream" and not (b"[DONE]" in last or b'"response.' in last):
        found.surprise(f"{kind.name}: a stream that ends with {last[:200]!r}")
