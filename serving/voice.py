"""The voice: ASGI middleware in vLLM's API server. Named by `--middleware`.

At start-up it holds the port shut until the self-test has passed. On guarded routes it opens an exchange, lets vLLM answer
and leaves the answer to a `Responder`. Everything else passes through untouched.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from prometheus_client import REGISTRY
from starlette.responses import JSONResponse

from guard.metrics import GuardMetrics
from guard.policy import Policy
from probes.errors import ForeguardError, ServingError
from serving import readiness
from serving.asking import (
    BadModeration,
    UnguardedRequest,
    asked,
    content_of,
    identify,
    read_moderation,
    require_guarded,
    wants_usage,
)
from serving.config import GuardConfig
from serving.decision_log import DecisionLog
from serving.exchange import Exchange, current
from serving.history import readable
from serving.listener import Listener
from serving.placement import placed_inside
from serving.readiness import Readiness
from serving.ready_age import max_age
from serving.request_body import Message, Receive, read_body, replaced
from serving.responder import Responder, Send
from serving.routes import RESPONSES, ROUTES, Route
from serving.selftest import ask_engines, canary, engines

logger = logging.getLogger("vllm.foreguard.voice")

Scope = dict[str, Any]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class GuardMiddleware:
    """The guard's place in the API server: around it all while it starts and stops, and next to the routes otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._guard = _Guard()
        self.app = placed_inside(app, self._guard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, self._opening(scope, send))
        finally:
            await self._guard.stop()

    def _opening(self, scope: Scope, send: Send) -> Send:
        async def open_when_tested(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    self._guard.require_reached()
                    await self._start(scope["app"].state)
                except ForeguardError as error:
                    logger.exception("the guard does not work; refusing to serve")
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        return open_when_tested

    async def _start(self, state: Any) -> None:
        await self._guard.start(state)


class _Guard:
    """The innermost middleware. `app` is what it guards."""

    app: ASGIApp

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._readiness: Readiness | None = None
        self._model = ""
        self._forces_usage = False
        self._is_reached = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        self._is_reached = True
        path = _path(scope)
        if path in ROUTES and scope["method"] == "POST":
            await self._guarded(path, scope, receive, send)
        elif path == readiness.PATH and scope["method"] in ("GET", "HEAD"):
            await self._tell_readiness(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def require_reached(self) -> None:
        """Raise `ServingError` if the start-up did not come by here: requests would not either."""
        if not self._is_reached:
            raise ServingError(
                "another middleware does not pass requests on to the `app` that it keeps",
                field="--middleware",
                remedy="leave that middleware out, or let it call self.app",
            )

    async def start(self, state: Any) -> None:
        """Test the guard, then begin. Raises `ForeguardError` where it does not work."""
        config = GuardConfig.from_vllm(state.vllm_config.additional_config)
        bound = config.bind_policy(config.load_artifact())
        age, client = max_age(), state.engine_client
        verdict = await canary(client)
        metrics = GuardMetrics(REGISTRY, bound)
        self._model = state.openai_serving_models.base_model_paths[0].name
        self._forces_usage = bool(getattr(getattr(state, "args", None), "enable_force_include_usage", False))
        self._readiness = Readiness(partial(_asked_awake, client, client.generate), metrics, age)
        # A client's prompt says nothing of the engines that it did not go to.
        on_scored = self._readiness.note_scored if len(engines(client)) == 1 else lambda: None
        Listener(bound, metrics, DecisionLog(bound.policy, self._model), on_scored).attach(client)
        self._readiness.begin()
        self._policy = bound.policy
        logger.info(
            "guard ready: policy %s, mode %s, canary scores %s", bound.policy.label, bound.policy.mode, verdict.scores
        )

    async def stop(self) -> None:
        """End what runs beside the requests."""
        if self._readiness is not None:
            await self._readiness.end()

    async def _tell_readiness(self, scope: Scope, receive: Receive, send: Send) -> None:
        unready = (503, {"ready": False, "reason": "the guard has not passed its self-test"})
        status, body = unready if self._readiness is None else self._readiness.report()
        await JSONResponse(body, status, {"cache-control": "no-store"})(scope, receive, send)

    async def _guarded(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        route = ROUTES[path]
        if self._policy is None:
            error = route.error("The guard is not ready.", "guard_not_ready", None)
            await JSONResponse(error, 503)(scope, receive, send)
            return
        body, replay = await read_body(receive)
        content = content_of(body)
        try:
            exchange = self._exchange(path, content, scope, self._policy)
        except UnguardedRequest as error:
            await _refuse(route, error, "unsupported_parameter", "use_beam_search")(scope, receive, send)
            return
        except BadModeration as error:
            await _refuse(route, error, "invalid_moderation", "moderation")(scope, receive, send)
            return
        if route is RESPONSES and (changed := readable(content)) is not None:
            replay = replaced(changed, receive)
        token = current.set(exchange)
        try:
            responder = Responder(send, route, exchange, self._policy, self._model)
            await self.app(scope, replay, responder.send)
        finally:
            current.reset(token)

    def _exchange(self, path: str, content: dict[str, Any], scope: Scope, policy: Policy) -> Exchange:
        """Return the exchange of one request. Raises `UnguardedRequest` and `BadModeration`."""
        require_guarded(content)
        moderation = read_moderation(content)
        caller = identify(scope["headers"], policy)
        return Exchange(
            asked=asked(moderation, caller),
            route=path,
            caller=caller.name if caller else None,
            wants_moderation=moderation is not None,
            sees_scores=policy.expose_scores or (caller is not None and caller.sees_scores),
            wants_usage=self._forces_usage or wants_usage(content),
            wants_echo=bool(content.get("echo")),
        )


async def _asked_awake(engine_client: Any, generate: Any) -> None:
    """Ask every engine with a canary prompt. Raises `ServingError` if one does not see it, or sleeps."""
    if await engine_client.is_sleeping():
        raise ServingError("the engine sleeps", field="/sleep", remedy="wake it up")
    await ask_engines(engine_client, generate)


def _path(scope: Scope) -> str | None:
    """Return the path of an HTTP request, as routes are written."""
    if scope["type"] != "http":
        return None
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).rstrip("/")


def _refuse(route: Route, error: Exception, code: str, param: str) -> JSONResponse:
    return JSONResponse(route.error(str(error), code, param), 400)
