"""Shapes of the Messages API: what the guard says on `/v1/messages`, in the forms that Anthropic's API has for it."""

import json
from collections.abc import Iterator

from serving.api.shapes import Json, Refusal, event

REFUSAL = "refusal"
"""Anthropic's `stop_reason` for an answer that a classifier ended."""


def message(refusal: Refusal) -> Json:
    """Return a blocked `message`."""
    return {
        "id": refusal.request_id,
        "type": "message",
        "role": "assistant",
        "model": refusal.model,
        "content": [{"type": "text", "text": refusal.message}],
        **_stop(),
        "usage": _usage(refusal),
        **refusal.told,
    }


def message_stream(refusal: Refusal) -> Iterator[bytes]:
    """Yield a blocked message as the Messages API's events."""
    opening = message(refusal) | {"content": [], "stop_reason": None, "stop_details": None}
    opening.pop("guardrail", None)
    events: list[Json] = [
        {"type": "message_start", "message": opening},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": refusal.message}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": _stop(), "usage": _usage(refusal), **refusal.told},
        {"type": "message_stop"},
    ]
    for content in events:
        yield event(content, name=content["type"])


def error(message: str, code: str, param: str | None, told: Json | None = None) -> Json:
    """Return Anthropic's error envelope for a request that is at fault."""
    about = {"type": "invalid_request_error", "message": message, "param": param, "code": code}
    return {"type": "error", "error": about | (told or {})}


def error_stream(content: Json) -> Iterator[bytes]:
    """Yield an error envelope as the end of a stream that has begun."""
    yield event(content, name="error")


def refused(content: Json) -> Json:
    """Return a whole message of vLLM's whose answer the guard ended: vLLM leaves out a stop reason that it does not
    know.
    """
    return content | _stop()


def refused_event(chunk: bytes) -> bytes:
    """Return one event of vLLM's stream, with the stop reason where it should have one."""
    head, mark, data = chunk.partition(b"data: ")
    if not mark or b'"message_delta"' not in data:
        return chunk
    content = json.loads(data)
    content["delta"] |= _stop()
    return event(content, name=content["type"]) if head.startswith(b"event:") else event(content)


def _stop() -> Json:
    details = {"type": REFUSAL, "category": None, "explanation": None}
    return {"stop_reason": REFUSAL, "stop_sequence": None, "stop_details": details}


def _usage(refusal: Refusal) -> Json:
    return {"input_tokens": refusal.prompt_tokens, "output_tokens": 0}
