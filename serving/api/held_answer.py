"""A held answer: the messages of one HTTP answer that have not left yet, and what can be read in them."""

import json
from functools import cached_property

from serving.api.request_body import Message
from serving.api.shapes import Json, encode

_DATA = b"data: {"


class HeldAnswer:
    """What vLLM has sent so far."""

    def __init__(self) -> None:
        self.start: Message = {}
        self.bodies: list[Message] = []

    def add(self, message: Message) -> None:
        """Hold one more message."""
        if message["type"] == "http.response.start":
            # ASGI wants names in lower case, and not every middleware keeps to it.
            headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            self.start = {**message, "headers": headers}
        else:
            self.bodies.append(message)

    @property
    def status(self) -> int:
        """The HTTP status."""
        status: int = self.start["status"]
        return status

    @property
    def is_stream(self) -> bool:
        """Whether the answer is server-sent events."""
        return any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in self.start.get("headers", ())
        )

    @property
    def is_whole(self) -> bool:
        """Whether the last message is here."""
        return bool(self.bodies) and not self.bodies[-1].get("more_body", False)

    def is_comment(self, message: Message) -> bool:
        """Whether a message is nothing but comments of a stream, which carry no token: vLLM sends them to keep it
        alive.
        """
        if message["type"] != "http.response.body" or not message.get("more_body", False) or not self.is_stream:
            return False
        lines = [line for line in message.get("body", b"").split(b"\n") if line]
        return bool(lines) and all(line.startswith(b":") for line in lines)

    @cached_property
    def own(self) -> Json | None:
        """The object that vLLM answers with, of a stream the one in its first event; None where there is none.

        To be asked once enough has come.
        """
        body = b"".join(message.get("body", b"") for message in self.bodies)
        if self.is_stream:
            lines = body.split(b"\n")
            body = next((line.removeprefix(b"data: ") for line in lines if line.startswith(_DATA)), b"")
        found = _object(body)
        if found is None:
            return None
        return next((found[key] for key in ("response", "message") if isinstance(found.get(key), dict)), found)

    def with_first_event(self, bodies: list[Message], entries: Json) -> list[Message]:
        """Return a stream's `bodies` with further `entries` in the first object that they carry."""
        for number, message in enumerate(bodies):
            head, mark, rest = message.get("body", b"").partition(_DATA)
            data, end, rest = (_DATA[-1:] + rest).partition(b"\n")
            if mark and (found := _object(data)) is not None:
                body = head + b"data: " + encode(found | entries) + end + rest
                return [*bodies[:number], {**message, "body": body}, *bodies[number + 1 :]]
        return bodies


def _object(text: bytes) -> Json | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
