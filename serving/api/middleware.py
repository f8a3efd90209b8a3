"""The guard's ASGI middleware in vLLM's API server. Named by `--middleware`.

At start-up it holds the port shut until the self-test has passed. Then it lets in who may ask, whatever the route.
Health checks need no key; scores and thresholds on `/metrics` need one of their own.
"""

import logging
from typing import Any

from starlette.responses import JSONResponse

from probes.errors import ForeguardError, ServingError
from serving.api import readiness, shapes
from serving.api.assembly import Parts, assemble
from serving.api.guarded_requests import ASGIApp, Scope
from serving.api.placement import placed_inside
from serving.api.public_metrics import public_metrics
from serving.api.request_body import Message, Receive
from serving.api.responder import Send
from serving.api.routes import METRICS, OPEN, ROUTES, has_control_characters, known_path

logger = logging.getLogger("vllm.foreguard.middleware")


class GuardMiddleware:
    """The guard's place in the API server: around it all while it starts and stops, and next to the routes
    otherwise.
    """

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
        self._parts: Parts | None = None
        self._is_reached = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        self._is_reached = True
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif has_control_characters(scope):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
        else:
            await self._answer(known_path(scope), scope, receive, send)

    async def _answer(self, path: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        headers, parts = scope["headers"], self._parts
        if path == readiness.PATH:
            await self._tell_readiness(scope, receive, send)
        elif path in OPEN:
            await self.app(scope, receive, send)
        elif parts is None:
            await _not_ready(path)(scope, receive, send)
        elif not (parts.keys.may_read_metrics(headers) if path == METRICS else parts.keys.may_ask(headers)):
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        elif path != METRICS:
            await parts.requests.answer(path, scope, receive, send)
        elif parts.keys.may_read_scores(headers):
            await self.app(scope, receive, send)
        else:
            await public_metrics(scope, receive, send)

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
        self._parts = await assemble(self.app, state)

    async def stop(self) -> None:
        """End what runs beside the requests."""
        if self._parts is not None:
            await self._parts.end()

    async def _tell_readiness(self, scope: Scope, receive: Receive, send: Send) -> None:
        unready = (503, {"ready": False, "reason": "the guard has not passed its self-test"})
        status, body = unready if self._parts is None else self._parts.readiness.report()
        await JSONResponse(body, status, {"cache-control": "no-store"})(scope, receive, send)


def _not_ready(path: str | None) -> JSONResponse:
    error = ROUTES[path].error if path in ROUTES else shapes.error
    return JSONResponse(error("The guard is not ready.", "guard_not_ready", None), 503)
