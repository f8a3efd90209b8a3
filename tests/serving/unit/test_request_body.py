"""A body is read within a size and a time, and reaches vLLM as it came."""

import asyncio

import pytest

from serving.api.request_body import BodyTooLong, BodyTooSlow, Limits, read_body, replaced

LIMITS = Limits(num_bytes=10, seconds=5)
LEFT = {"type": "http.disconnect"}


class Client:
    """Sends a body in pieces, and then leaves; or stays silent behind them."""

    def __init__(self, *pieces, ends=True, silent=False):
        self.pending = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        if ends:
            self.pending[-1] = {"type": "http.request", "body": pieces[-1]}
        self.taken = 0
        self.silent = silent

    async def receive(self):
        """Give one message."""
        self.taken += 1
        if self.pending:
            return self.pending.pop(0)
        if self.silent:
            await asyncio.Event().wait()
        return LEFT


async def given_again(receive):
    """What vLLM hears: the body, and the first message behind it."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return body, message
        body, more = body + message["body"], message.get("more_body", False)
    return body, await receive()


@pytest.mark.parametrize("pieces", [[b""], [b"0123456789"], [b"0", b"", b"12345", b"6789"], [b"0"] * 10])
async def test_a_body_comes_through_whole(pieces):
    """However many pieces it came in, up to the very limit."""
    body, replay = await read_body(Client(*pieces).receive, [(b"content-length", b"10")], LIMITS)
    assert body == b"".join(pieces)
    assert await given_again(replay) == (body, LEFT)


async def test_a_client_that_leaves_before_the_end():
    """VLLM hears that, too."""
    body, replay = await read_body(Client(b"01", ends=False).receive, [], LIMITS)
    assert body == b"01"
    assert await given_again(replay) == (b"01", LEFT)


@pytest.mark.parametrize("length", [b"11", b"200000000", b"9" * 5000])
async def test_a_body_that_says_that_it_is_too_long_is_not_read(length):
    """Not one byte of it."""
    client = Client(b"0")
    with pytest.raises(BodyTooLong, match="10 bytes"):
        await read_body(client.receive, [(b"Content-Length", length)], LIMITS)
    assert client.taken == 0


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"5")], [(b"content-length", b"x")]])
async def test_a_body_that_turns_out_too_long_is_read_no_further(headers):
    """Without a length, with a wrong one, or in endless pieces."""
    client = Client(*[b"0"] * 1000)
    with pytest.raises(BodyTooLong):
        await read_body(client.receive, headers, LIMITS)
    assert client.taken == 11


@pytest.mark.parametrize("pieces", [[], [b"0"], [b"0", b"1"]])
async def test_a_body_that_does_not_end(pieces):
    """Its client is told after the time, whatever has come by then."""
    client = Client(*pieces, ends=False, silent=True)
    async with asyncio.timeout(5):
        with pytest.raises(BodyTooSlow, match=r"0\.05 s"):
            await read_body(client.receive, [], Limits(10, 0.05))


async def test_a_body_in_drops():
    """The time counts from the first byte to the last: sending something now and then does not extend it."""

    async def drip():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"0", "more_body": True}

    with pytest.raises(BodyTooSlow):
        await read_body(drip, [], Limits(1000, 0.1))


async def test_another_body_in_its_place():
    """What comes behind it stays."""
    client = Client(b"0")
    await read_body(client.receive, [], LIMITS)
    assert await given_again(replaced(b"new", client.receive)) == (b"new", LEFT)
