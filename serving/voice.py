"""The voice: ASGI middleware around vLLM's API server. Named by `--middleware`.

At start-up it holds the port shut until the self-test has passed. On guarded routes it opens an exchange, lets vLLM answer
and leaves the answer to a `Responder`. Everything else passes through untouched.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import REGISTRY

from guard.metrics import GuardMetrics
from guard.policy import Policy
from probes.errors import ForeguardError
from serving import shapes
from serving.asking import (
    BadModeration,
    UnguardedRequest,
    asked,
    content_of,
    identify,
    read_moderation,
    require_guarded,
)
from serving.config import GuardConfig
from serving.exchange import Exchange, current
from serving.listener import Listener
from serving.responder import ROUTES, Message, Responder, Route, Send
from serving.selftest import canary

logger = logging.getLogger("vllm.foreguard.voice")

SAGEMAKER = "/invocations"
"""vLLM's other way to its chat and completions routes. The gate decides there too; answers keep vLLM's own shape."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class GuardMiddleware:
    """The guard's place in the API server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._policy: Policy | None = None
        self._model = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._opening(scope, send))
            return
        route = _route(scope)
        if route is not None:
            await self._guarded(route, scope, receive, send)
        elif _path(scope) == SAGEMAKER:
            await self._without_beams(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _opening(self, scope: Scope, send: Send) -> Send:
        async def open_when_tested(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._start(scope["app"].state)
                except ForeguardError as error:
                    logger.exception("the guard does not work; refusing to serve")
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        return open_when_tested

    async def _start(self, state: Any) -> None:
        config = GuardConfig.from_vllm(state.vllm_config.additional_config)
        bound = config.bind_policy(config.load_artifact())
        verdict = await canary(state.engine_client)
        metrics = GuardMetrics(REGISTRY, bound)
        Listener(bound, metrics).attach(state.engine_client)
        self._model = state.openai_serving_models.base_model_paths[0].name
        self._policy = bound.policy
        logger.info(
            "guard ready: policy %s, mode %s, canary scores %s", bound.policy.label, bound.policy.mode, verdict.scores
        )

    async def _without_beams(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, replay = await _read_body(receive)
        try:
            require_guarded(content_of(body))
        except UnguardedRequest as error:
            await _refuse(send, 400, shapes.error(str(error), "unsupported_parameter", "use_beam_search"))
            return
        await self.app(scope, replay, send)

    async def _guarded(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        if self._policy is None:
            await _refuse(send, 503, shapes.error("The guard is not ready.", "guard_not_ready", None))
            return
        body, replay = await _read_body(receive)
        try:
            content = content_of(body)
            require_guarded(content)
            moderation = read_moderation(content)
        except UnguardedRequest as error:
            await _refuse(send, 400, shapes.error(str(error), "unsupported_parameter", "use_beam_search"))
            return
        except BadModeration as error:
            await _refuse(send, 400, shapes.error(str(error), "invalid_moderation", "moderation"))
            return
        caller = identify(scope["headers"], self._policy)
        exchange = Exchange(
            asked=asked(moderation, caller),
            wants_moderation=moderation is not None,
            sees_scores=self._policy.expose_scores or (caller is not None and caller.sees_scores),
        )
        token = current.set(exchange)
        try:
            responder = Responder(send, route, exchange, self._policy, self._model, body)
            await self.app(scope, replay, responder.send)
        finally:
            current.reset(token)


def _route(scope: Scope) -> Route | None:
    path = _path(scope)
    return None if path is None else ROUTES.get(path)


def _path(scope: Scope) -> str | None:
    """Return the path of a POST request, as routes are written."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/")


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """Return the request's body, and a `receive` that gives it again before what follows it."""
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    pending = iter(messages)

    async def replay() -> Message:
        return next(pending, None) or await receive()

    return b"".join(message.get("body", b"") for message in messages), replay


async def _refuse(send: Send, status: int, content: dict[str, Any]) -> None:
    body = shapes.encode(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
