"""Signing in: the console's pages, files and websocket are for operators alone.

A session is a signed cookie with the operator's name. Its key is made when the process starts, so that a restart ends
all sessions.
"""

import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admin.operators import Operators

PATH = "/guard/console"
SIGN_IN = f"{PATH}/sign-in"
SIGN_OUT = f"{PATH}/sign-out"
WHO = "who"
"""The session's key for the operator's name."""
_SESSION_S = 8 * 3600
_LONGEST = 4096
"""Bytes of the sign-in form."""
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss:; frame-ancestors 'none'; "
        "base-uri 'self'; form-action 'self'; object-src 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""NiceGUI compiles its templates in the browser, hence `unsafe-eval`. Nothing comes from another host."""
_FORM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Sign in · Foreguard</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0; }}
main {{ width: min(22rem, 90vw); }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; font-size: 1rem; }}
input, button {{ padding: .6rem; margin: .4rem 0 1rem; }}
</style></head>
<body><main><h1>Foreguard</h1>
<form method="post" action="{action}">
<label for="token">Your operator token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
<p role="alert">{problem}</p>
</form></main></body></html>"""


class Access:
    """Lets operators in, and sends everyone else to the sign-in page. It stands around the whole application."""

    def __init__(self, app: ASGIApp, operators: Operators | None) -> None:
        """Without `operators` everyone is let in, as somebody without a name: for a console on one's own machine."""
        self._app = SessionMiddleware(
            self._checked,
            secret_key=secrets.token_hex(32),
            session_cookie="foreguard_console",
            max_age=_SESSION_S,
            path="/guard",
            same_site="strict",
        )
        self._inner, self._operators = app, operators

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        is_page = scope["type"] in ("http", "websocket") and scope["path"].startswith(PATH)
        await (self._app if is_page else self._inner)(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        request = Request(scope, receive)
        if self._operators is None:
            request.session[WHO] = ""
        response = await self._own_page(request)
        if response is None and WHO not in request.session:
            is_page = request.method == "GET" and "/_nicegui/" not in request.url.path
            response = (
                RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER) if is_page else Response(None, HTTPStatus.UNAUTHORIZED)
            )
        await (response or self._inner)(scope, receive, _with_headers(send))

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        origin = urlsplit(connection.headers.get("origin", "")).netloc
        if WHO not in connection.session or (origin and origin != connection.headers.get("host")):
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._inner(scope, receive, send)

    async def _own_page(self, request: Request) -> Response | None:
        if request.url.path == SIGN_OUT and request.method == "POST":
            request.session.clear()
            return RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER)
        if request.url.path != SIGN_IN:
            return None
        if request.method != "POST":
            return HTMLResponse(_FORM.format(action=SIGN_IN, problem=""))
        token = await _token(request)
        who = self._operators.name_of(f"Bearer {token}") if self._operators else ""
        if who is None:
            problem = "This is no operator's token."
            return HTMLResponse(_FORM.format(action=SIGN_IN, problem=problem), HTTPStatus.UNAUTHORIZED)
        request.session.clear()
        request.session[WHO] = who
        return RedirectResponse(PATH, HTTPStatus.SEE_OTHER)


async def _token(request: Request) -> str:
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _LONGEST:
            return ""
    from urllib.parse import parse_qs

    return parse_qs(content.decode("latin-1")).get("token", [""])[0].strip()


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sent
