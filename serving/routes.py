"""Routes: the paths whose answers the guard holds until their verdict, and how each says that it was blocked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from serving import anthropic_shapes, shapes
from serving.shapes import Json, Refusal


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
