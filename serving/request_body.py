"""The request's body: read as a whole before vLLM sees it, then given to it again."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


async def read_body(receive: Receive) -> tuple[bytes, Receive]:
    """Return the request's body, and a `receive` that gives it again before what follows it."""
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    body = b"".join(message.get("body", b"") for message in messages)
    return body, _followed(messages, receive)


def replaced(content: dict[str, Any], receive: Receive) -> Receive:
    """Return a `receive` that gives `content` as the body; `receive` is one whose own body has been read."""
    return _followed([{"type": "http.request", "body": json.dumps(content).encode(), "more_body": False}], receive)


def _followed(messages: list[Message], receive: Receive) -> Receive:
    pending = iter(messages)

    async def replay() -> Message:
        return next(pending, None) or await receive()

    return replay
