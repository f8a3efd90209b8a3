"""The guard stands next to vLLM's routes: inside of authentication, CORS and request ids, whatever else is in the
chain.
"""

import json
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serving.api.middleware import GuardMiddleware
from serving.api.placement import placed_inside

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
BROWSER = {"origin": "http://page.test", "x-request-id": "abc"}
KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def app():
    """VLLM's own application, with an API key, CORS and request ids; it has no engine, and the guard has not
    started.
    """
    flags = ["--middleware", "serving.api.middleware.GuardMiddleware", "--api-key", "k", "--enable-request-id-headers"]
    parser = make_arg_parser(FlexibleArgumentParser())
    return build_app(parser.parse_args([*flags, "--allowed-origins", '["http://page.test"]']), ("generate",))


async def post(app, path, headers, content=None):
    """Ask the application."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, headers=headers, **({"content": content} if content else {"json": QUESTION}))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_the_guard_s_own_answers_have_the_headers_of_vllm_s(app, path):
    """A browser reads the guard's 503, and its request id is there."""
    reply = await post(app, path, BROWSER | KEY)
    assert reply.status_code == 503
    assert "not ready" in reply.text
    assert reply.headers["access-control-allow-origin"] == "http://page.test"
    assert reply.headers["x-request-id"] == "abc"


async def test_who_has_no_key_is_not_read(app):
    """Authentication answers, before the guard has taken a byte of the body."""
    taken = []

    async def body():
        taken.append(1)
        yield b"{}"

    reply = await post(app, "/v1/chat/completions", BROWSER, body())
    assert (reply.status_code, reply.json()) == (401, {"error": "Unauthorized"})
    assert taken == []


class Stubborn:
    """A middleware that shows an `app`, and calls another."""

    def __init__(self, app):
        self._inner = app
        self.app = app

    async def __call__(self, scope, receive, send):
        """Pass everything on."""
        await self._inner(scope, receive, send)


class Opaque:
    """A middleware that shows nothing of what it wraps."""

    def __init__(self, wrapped):
        self._wrapped = wrapped

    async def __call__(self, scope, receive, send):
        """Pass everything on."""
        await self._wrapped(scope, receive, send)


def around(*inside):
    """An application with the guard around these middlewares."""
    chain = [Middleware(GuardMiddleware), *(Middleware(each) for each in inside)]
    return Starlette(routes=[Route("/other", lambda _: PlainTextResponse("other"))], middleware=chain)


async def test_a_middleware_that_the_guard_cannot_enter_stays_inside(app):
    """The guard stands around it: no request comes past the guard."""
    reply = await post(around(Opaque), "/v1/chat/completions", {})
    assert json.loads(reply.text)["error"]["code"] == "guard_not_ready"


async def test_a_guard_that_is_bypassed_opens_no_port():
    """A middleware that would lead around the guard is noticed at the start."""
    incoming, sent = iter(["lifespan.startup", "lifespan.shutdown"]), []

    async def receive():
        return {"type": next(incoming)}

    async def send(message):
        sent.append(message)

    await around(Stubborn)({"type": "lifespan", "state": {}}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "middleware" in sent[0]["message"]


def test_the_chain_is_kept():
    """The links stay the objects that they were; a chain of none is the guard alone."""
    guard, inner = SimpleNamespace(), SimpleNamespace()
    outer = SimpleNamespace(app=lambda: None)
    routes = outer.app
    assert placed_inside(outer, guard) is outer
    assert (outer.app, guard.app) == (guard, routes)
    assert placed_inside(inner, guard) is guard
    assert guard.app is inner
