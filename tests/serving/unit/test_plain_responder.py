"""On a route whose forms the guard does not know a blocked prompt is an HTTP error: no byte of the route's own
leaves.
"""

import asyncio
import json

import pytest
from vllm.sampling_params import SamplingParams

from serving.api.exchange import current
from tests.serving.unit.conftest import summed

PATH = "/generative_scoring"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"x-own", b"1")],
}
SSE = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def body(text, more=True):
    """A piece of an answer."""
    return {"type": "http.response.body", "body": text, "more_body": more}


async def ask(engine, n=1):
    """Ask the engine; return the text of every completion."""
    return "".join(
        [each.text async for item in engine.generate("p", SamplingParams(n=n), "r") for each in item.outputs]
    )


async def whole(engine, scope, receive, send):
    """An answer in one piece."""
    text = await ask(engine, n=int(scope.get("n", 1)))
    await send(START)
    await send(body(text.encode(), more=False))


async def lazy(engine, scope, receive, send):
    """A stream that begins before its first prompt reaches the engine."""
    await send(SSE)
    await send(body((await ask(engine)).encode()))
    await send(body(b"end", more=False))


async def stream(engine, scope, receive, send):
    """A stream that was asked for before it begins, and whose first event says nothing yet."""
    outputs = engine.generate("p", SamplingParams(), "r")
    await send(SSE)
    await send(body(b"role"))
    async for item in outputs:
        await send(body(item.outputs[0].text.encode()))
    await send(body(b"", more=False))


async def failing(engine, scope, receive, send):
    """An answer of an error of its own."""
    text = await ask(engine)
    await send(START | {"status": 500})
    await send(body(f"no log-probabilities in {text}".encode(), more=False))


async def raising(engine, scope, receive, send):
    """No answer."""
    raise IndexError(await ask(engine))


APPS = [whole, lazy, stream, failing, raising]


@pytest.mark.parametrize("app", APPS)
async def test_a_blocked_prompt_is_an_error(serve, app):
    """With a status, the guard's headers and OpenAI's envelope, whatever the route made of it."""
    server = await serve(app)
    server.engine.scores = [3.0]
    status, headers, content = await server.post(b"{}", PATH)
    error = json.loads(content)["error"]
    assert (status, headers["content-type"], headers["x-guardrail-decision"]) == (400, "application/json", "block")
    assert headers["x-guardrail-policy"] == "test@1"
    assert (error["code"], error["guardrail"]["event_id"]) == ("content_filter", headers["x-guardrail-event-id"])
    assert "x-own" not in headers
    assert b"role" not in content


@pytest.mark.parametrize(
    ("app", "status", "text"), [(whole, 200, b"hello"), (lazy, 200, b"helloend"), (stream, 200, b"rolehello")]
)
async def test_an_allowed_prompt_is_answered(serve, app, status, text):
    """The route's own answer byte for byte, with the guard's headers beside its own."""
    server = await serve(app)
    answered, headers, content = await server.post(b"{}", PATH)
    assert (answered, content, headers["x-guardrail-decision"]) == (status, text, "allow")
    assert ("x-own" in headers) is (app is whole)


async def test_an_error_that_is_not_the_guard_s_doing(serve):
    """It stays what it is."""
    server = await serve(raising)
    with pytest.raises(IndexError):
        await server.post(b"{}", PATH)
    assert current.get() is None


async def test_no_byte_leaves_before_the_verdict(serve):
    """Not even the status."""
    server, verdict = await serve(stream), asyncio.Event()
    generate, sent = server.engine.generate, []

    def slow(*args, **options):
        outputs = generate(*args, **options)

        async def later():
            await verdict.wait()
            async for output in outputs:
                yield output

        return later()

    server.engine.generate = slow

    async def receive():
        return {"type": "http.request", "body": b"{}"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    answering = asyncio.create_task(server.middleware(scope, receive, send))
    await asyncio.sleep(0.02)
    assert sent == []
    verdict.set()
    await answering
    assert summed(sent)[2] == b"rolehello"


@pytest.mark.parametrize("kind", [START, SSE])
async def test_a_prompt_that_is_blocked_in_the_middle_of_an_answer(serve, kind):
    """What has left stays said; the stream ends there, with an error where its form has one."""

    async def app(engine, scope, receive, send):
        await send(kind)
        await send(body(b"before;"))
        engine.scores = [3.0]
        await send(body((await ask(engine)).encode()))
        await send(body(b"behind", more=False))

    server = await serve(app)
    status, _, content = await server.post(b"{}", PATH)
    assert status == 200
    said = content.removeprefix(b"before;")
    assert (said != b"", b"content_filter" in said) == (kind is SSE, kind is SSE)
    assert b"behind" not in said


async def test_one_of_several_that_is_blocked(serve):
    """The answer is one: all of it is withheld."""

    async def app(engine, scope, receive, send):
        first = await ask(engine)
        engine.scores = [3.0]
        await send(START)
        await send(body((first + await ask(engine)).encode(), more=False))

    server = await serve(app)
    status, headers, content = await server.post(b"{}", PATH)
    assert (status, headers["x-guardrail-decision"]) == (400, "block")
    assert b"hello" not in content


@pytest.mark.parametrize(("asked", "expected"), [(b'{"moderation": {"mode": "block"}}', 400), (b"{}", 200)])
async def test_a_client_s_wish_is_heard(serve, asked, expected):
    """A flag becomes a block for whoever asks for that, on this route as on any."""
    server = await serve(whole)
    server.engine.scores = [1.5]
    assert (await server.post(asked, PATH))[0] == expected


@pytest.mark.parametrize("asked", [b'{"use_beam_search": true}', b'{"moderation": 1}'])
async def test_what_is_refused_elsewhere_is_refused_here(serve, asked):
    """Before the route is asked."""
    server = await serve(whole)
    status, _, content = await server.post(asked, PATH)
    assert (status, len(server.engine.asked)) == (400, 1)  # the canary's
    assert json.loads(content)["error"]["type"] == "invalid_request_error"
