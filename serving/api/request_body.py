"""The request's body: read as a whole before vLLM sees it, within a size and a time, and then given to it again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = Iterable[tuple[bytes, bytes]]


class BodyTooLong(ValueError):
    """The body is longer than the server takes; the text is fit for the client."""


class BodyTooSlow(ValueError):
    """The body did not come in time; the text is fit for the client."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes of one request."""

    num_bytes: int
    seconds: float
    """From the first byte to the last."""


async def read_body(receive: Receive, headers: Headers, limits: Limits) -> tuple[bytes, Receive]:
    """Return the request's body, and a `receive` that gives it again before what follows it.

    A body that says that it is too long is not read at all. Raises `BodyTooLong` and `BodyTooSlow`.
    """
    _require_short(_announced(headers), limits)
    try:
        async with asyncio.timeout(limits.seconds):
            body, last = await _pieces(receive, limits)
    except TimeoutError:
        raise BodyTooSlow(f"The request's body did not come within {limits.seconds:g} s.") from None
    pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": last is not None}]
    return body, followed(pieces if last is None else [*pieces, last], receive)


async def _pieces(receive: Receive, limits: Limits) -> tuple[bytes, Message | None]:
    """Return the body, and the message that came in place of its end, if one did: the client has left."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body), message
        body += message.get("body", b"")
        _require_short(len(body), limits)
        if not message.get("more_body", False):
            return bytes(body), None


def _require_short(size: float, limits: Limits) -> None:
    if size > limits.num_bytes:
        raise BodyTooLong(f"The request's body has more than {limits.num_bytes} bytes.")


def _announced(headers: Headers) -> float:
    length = next((value for name, value in headers if name.lower() == b"content-length"), b"")
    return float(length) if length.isdigit() else 0.0


def followed(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives `messages`, and then what `receive` gives."""
    pending = iter(messages)

    async def replay() -> Message:
        return next(pending, None) or await receive()

    return replay


def replaced(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body; `receive` is one whose own body has been read."""
    return followed([{"type": "http.request", "body": body, "more_body": False}], receive)
