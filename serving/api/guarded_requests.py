"""Guarded requests: each gets an exchange, and its answer is held until the verdict of every prompt that it brings.

Which route it is does not matter: where a prompt reaches the engine, the verdict reader finds the exchange.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse

from guard.rollout import Asking, InForce
from serving.api import shapes
from serving.api.exchange import Exchange, current
from serving.api.history import readable
from serving.api.plain_responder import PlainResponder
from serving.api.request_body import BodyTooLong, BodyTooSlow, Limits, Receive, read_body, replaced
from serving.api.request_fields import UnreadableBody, fields_of
from serving.api.request_options import (
    BadModeration,
    UnguardedRequest,
    asked,
    granted_variant,
    identify,
    read_moderation,
    require_guarded,
    wants_usage,
)
from serving.api.responder import Responder, Send
from serving.api.routes import RESPONSES, ROUTES, Route
from serving.api.tenants import tenant_of, token_digest
from serving.api.typed_tokens import TypedSpecialToken, require_none_typed

Scope = dict[str, Any]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_REFUSED: dict[type[Exception], tuple[int, str, str | None]] = {
    UnguardedRequest: (400, "unsupported_parameter", "use_beam_search"),
    BadModeration: (400, "invalid_moderation", "moderation"),
    TypedSpecialToken: (400, "special_token", None),
    UnreadableBody: (400, "invalid_json", None),
    BodyTooLong: (413, "request_too_large", None),
    BodyTooSlow: (408, "request_timeout", None),
}
"""Status, code and parameter of what is refused before vLLM is asked."""


class GuardedRequests:
    """Answers what may reach the engine."""

    def __init__(
        self,
        app: ASGIApp,
        in_force: InForce,
        model: str,
        limits: Limits,
        *,
        spellings: Sequence[str] = (),
        forces_usage: bool,
    ) -> None:
        """`app` is vLLM's; `model` is what it serves; `spellings` are those of special tokens, which a policy may have
        refused; `forces_usage` is whether every stream ends with its token counts.
        """
        self._app = app
        self._in_force = in_force
        self._model = model
        self._limits = limits
        self._spellings = spellings
        self._forces_usage = forces_usage

    async def answer(self, path: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection; `path` is the known one that it asks for, if it asks for one."""
        if scope["type"] != "http":
            with _opened(self._exchange(path, {}, scope)):
                await self._app(scope, receive, send)
            return
        route = ROUTES.get(path) if path else None
        try:
            body, replay = await read_body(receive, scope["headers"], self._limits)
            exchange = self._exchange(path, fields_of(body, is_json=_is_json(scope)), scope)
            require_none_typed(body, self._spellings if exchange.policy.special_tokens == "refuse" else ())
        except tuple(_REFUSED) as error:
            await _refusal(route, error)(scope, receive, send)
            return
        if route is RESPONSES and (changed := readable(body)) is not None:
            replay = replaced(changed, receive)
        with _opened(exchange):
            if route is None:
                await self._plainly(exchange, scope, replay, send)
            else:
                await self._app(scope, replay, Responder(send, route, exchange, self._model).send)

    async def _plainly(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        responder = PlainResponder(send, exchange)
        try:
            await self._app(scope, receive, responder.send)
        except Exception as error:  # noqa: BLE001 - raised again where it is not the guard's doing
            # A route may not know what to make of a completion without tokens.
            await responder.fail(error)

    def _exchange(self, path: str | None, content: dict[str, Any], scope: Scope) -> Exchange:
        """Return the exchange of one request, under the policies that it comes under now.

        Raises `UnguardedRequest` and `BadModeration`.
        """
        require_guarded(content)
        rollout, moderation = self._in_force.current, read_moderation(content)
        caller = identify(scope["headers"], rollout.base.policy)
        tenant = tenant_of(scope["headers"], rollout.settings)
        asking = Asking(
            path,
            self._model,
            tenant,
            tenant or token_digest(scope["headers"]) or _address(scope),
            granted_variant(moderation, caller, rollout),
        )
        policies = rollout.choose(asking)
        policy = policies.policy
        return Exchange(
            policies,
            by_adapter=lambda name: rollout.choose(replace(asking, model=name)),
            asked=asked(moderation, caller),
            route=path,
            caller=caller.name if caller else None,
            tenant=tenant,
            wants_moderation=moderation is not None,
            sees_scores=policy.expose_scores or (caller is not None and caller.sees_scores),
            wants_usage=self._forces_usage or wants_usage(content),
            wants_echo=bool(content.get("echo")),
        )


@contextmanager
def _opened(exchange: Exchange) -> Iterator[None]:
    token = current.set(exchange)
    try:
        yield
    finally:
        current.reset(token)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _is_json(scope: Scope) -> bool:
    return any(b"json" in value.lower() for name, value in scope["headers"] if name.lower() == b"content-type")


def _refusal(route: Route | None, error: Exception) -> JSONResponse:
    status, code, param = _REFUSED[type(error)]
    content = (route.error if route else shapes.error)(str(error), code, param)
    # What is left of a body that nobody has read ends with the connection.
    headers = {"connection": "close"} if status in (408, 413) else None
    return JSONResponse(content, status, headers)
