"""The client's clock: what it times, in which order it asks, and that half an answer is not counted as a whole one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from benchmarks.cost.load import Client, ask
from benchmarks.cost.points import Load

WAIT_S = 0.05


class Server:
    """A server that waits before each token, and remembers what it was asked and how many requests it had at once."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.asked: list[dict] = []
        self.now = self.most = 0

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        if not body["stream"] or self.status != 200:
            await asyncio.sleep(WAIT_S)
            self.now -= 1
            return web.json_response({}, status=self.status)
        reply = web.StreamResponse()
        await reply.prepare(request)
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(WAIT_S)
            await reply.write(b"data: {}\n\n")
        await reply.write(b"data: [DONE]\n\n")
        self.now -= 1
        return reply

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/completions", self.completions)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def test_the_first_token_is_timed_from_the_question_and_the_others_from_the_first():
    async with Server().running() as url, aiohttp.ClientSession() as session:
        timing = await Client(session, url).timed([1, 2, 3], 5)
    assert WAIT_S <= timing.first_token < 4 * WAIT_S
    assert timing.per_token == pytest.approx(WAIT_S, rel=0.5)


async def test_a_judge_is_asked_first_for_one_token_and_counts_towards_the_first():
    server, judge = Server(), Server()
    async with server.running() as url, judge.running() as judge_url, aiohttp.ClientSession() as session:
        timing = await Client(session, url, judge_url).timed([1, 2, 3], 2)
    [asked] = judge.asked
    assert asked["max_tokens"] == 1
    assert asked["prompt"][-3:] == [1, 2, 3]
    assert timing.first_token >= 2 * WAIT_S
    assert server.asked[0]["prompt"] == [1, 2, 3]


@pytest.mark.parametrize("streamed", [True, False])
async def test_no_more_are_asked_at_once_than_the_load_says(streamed):
    server = Server()
    async with server.running() as url, aiohttp.ClientSession() as session:
        figures = await ask(Client(session, url), [[number] for number in range(7)], 1, Load(3, streamed))
    assert server.most == 3
    assert sorted(body["prompt"][0] for body in server.asked) == list(range(7))
    assert 0 < figures["requests_per_s"] <= 7 / (3 * WAIT_S)
    assert ("first_token" in figures) is streamed


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_error_is_not_a_fast_answer(streamed):
    async with Server(status=500).running() as url, aiohttp.ClientSession() as session:
        with pytest.raises(RuntimeError, match="status 500"):
            await ask(Client(session, url), [[1]], 4, Load(1, streamed))
