"""Routes: the paths that the guard knows, and how each says that it was blocked.

On every other path the guard works, too. Which of them a connection asks for is found by Starlette's own matching, as
vLLM's router finds it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Never

from starlette.routing import Match
from starlette.routing import Route as Matched

from serving.api import anthropic_shapes, readiness, shapes
from serving.api.shapes import Json, Refusal


@dataclass(frozen=True, slots=True)
class Route:
    """How one route says what the guard has to say."""

    param: str
    """The request's key that holds the prompt."""
    whole: Callable[[Refusal], Json]
    stream: Callable[[Refusal], Iterator[bytes]]
    chunk: str | None = None
    """`object` of a streamed chunk, where the route streams chunks."""
    error: Callable[..., Json] = shapes.error
    error_stream: Callable[[Json], Iterator[bytes]] = shapes.error_stream
    """The end, by an error, of a stream that has begun."""
    ended: Callable[[Json], Json] | None = None
    """Mends vLLM's whole answer where the guard ended it in its middle."""
    ended_event: Callable[[bytes], bytes] | None = None
    """Mends an event of such an answer's stream."""
    echoes: bool = False
    """Whether an answer may begin with its prompt (`echo`)."""
    by_object: Mapping[str, "Route"] = field(default_factory=dict)
    """Other routes that may have answered, by the `object` of vLLM's answer."""

    def answering(self, own: Json) -> "Route":
        """Return the route that made vLLM's `own` answer."""
        return self.by_object.get(str(own.get("object")), self)


CHAT = Route("messages", shapes.chat, shapes.chat_stream, "chat.completion.chunk")
COMPLETIONS = Route("prompt", shapes.completion, shapes.completion_stream, "text_completion", echoes=True)
RESPONSES = Route(
    "input",
    shapes.response,
    shapes.response_stream,
    error_stream=shapes.response_error_stream,
    ended=shapes.ended_response,
    ended_event=shapes.ended_response_event,
)
MESSAGES = Route(
    "messages",
    anthropic_shapes.message,
    anthropic_shapes.message_stream,
    error=anthropic_shapes.error,
    error_stream=anthropic_shapes.error_stream,
    ended=anthropic_shapes.refused,
    ended_event=anthropic_shapes.refused_event,
)

ROUTES = {
    "/v1/chat/completions": CHAT,
    # One choice for each conversation, never streamed.
    "/v1/chat/completions/batch": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    # SageMaker's: vLLM takes the body for a chat or for a completions request, whichever it is.
    "/invocations": replace(CHAT, by_object={"text_completion": COMPLETIONS}),
}
"""The generating routes whose answers the guard can say in their own form."""

OPEN = ("/health", "/ping")
"""Routes that answer anybody at any time, beside `readiness.PATH`: who restarts a server has no key."""

METRICS = "/metrics{rest:path}"
"""vLLM takes every path that begins so for its metrics (`vllm/entrypoints/serve/instrumentator/metrics.py`)."""

# `$` in a router's pattern also matches before a newline at the end, so one path has spellings.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


async def _elsewhere(*_: Any) -> Never:
    raise AssertionError("this table routes nothing")


_KNOWN = [Matched(path, _elsewhere) for path in (*ROUTES, *OPEN, readiness.PATH, METRICS)]


def has_control_characters(scope: Mapping[str, Any]) -> bool:
    """Return whether a connection's path has characters that no route of vLLM's has."""
    return bool(_CONTROL.search(scope["path"]))


def known_path(scope: Mapping[str, Any]) -> str | None:
    """Return the path above that a connection asks for, whatever its method, or None."""
    # Less its `root_path`, as the router has it.
    asked = {**scope, "type": "http", "method": "GET"}
    return next((each.path for each in _KNOWN if each.matches(asked)[0] is not Match.NONE), None)
