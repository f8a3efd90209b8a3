"""Placement: the guard stands inside the API server's other middleware, next to its routes.

vLLM puts what `--middleware` names around its own authentication, CORS and request-id middleware. There an answer of
the guard's would lack their headers, and the guard would read a body before anyone had checked the key. So the guard
moves to the inside of the chain: every middleware of the ASGI convention keeps the application it wraps as `app`.
"""

from typing import Any

from starlette.middleware.exceptions import ExceptionMiddleware


def placed_inside(app: Any, guard: Any) -> Any:
    """Return the chain `app` with `guard` as its innermost middleware; `guard.app` is then what it guards.

    A link without a changeable `app` ends the walk: the guard stands around it.
    """
    outer, inner = None, app
    while not isinstance(inner, ExceptionMiddleware) and callable(getattr(inner, "app", None)):
        outer, inner = inner, inner.app
    guard.app = inner
    if outer is None:
        return guard
    outer.app = guard
    return app
