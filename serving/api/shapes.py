"""Shapes: what the guard says to clients, in the forms that OpenAI's API has for it.

Pure functions from facts to JSON-ready values; nothing here knows vLLM or HTTP. A blocked answer is built from scratch:
no parser, grammar or template of the server can bend it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from guard.verdict import Action, Verdict

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The facts of an answer that is blocked as a whole."""

    request_id: str
    model: str
    created: int
    message: str
    num_choices: int
    prompt_tokens: int
    include_usage: bool = False
    moderation: Json | None = None
    message_in: str = "both"
    """Where a chat completion has the message: its `content`, its `refusal` or `both`."""
    guardrail: Json = field(default_factory=dict)
    """What the body tells of the guard: `serving.api.responder` makes it."""

    @property
    def told(self) -> Json:
        """The body's `guardrail` entry, where there is something to tell."""
        return {"guardrail": self.guardrail} if self.guardrail else {}

    @property
    def turn(self) -> Json:
        """The assistant's turn of a chat completion."""
        content = self.message if self.message_in != "refusal" else None
        refused = self.message if self.message_in != "content" else None
        return {"role": "assistant", "content": content, "refusal": refused}

    @property
    def usage(self) -> Json:
        """Token counts: no completion token was ever made."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": 0, "total_tokens": self.prompt_tokens}


def chat(refusal: Refusal) -> Json:
    """Return a blocked `chat.completion`."""
    choices = [_choice(index, message=refusal.turn, logprobs=None) for index in range(refusal.num_choices)]
    return _envelope(refusal, "chat.completion") | {"choices": choices, "usage": refusal.usage} | refusal.told


def chat_stream(refusal: Refusal) -> Iterator[bytes]:
    """Yield a blocked chat completion as server-sent events."""
    envelope = _envelope(refusal, "chat.completion.chunk")
    for index in range(refusal.num_choices):
        yield event(
            envelope | {"choices": [{"index": index, "delta": refusal.turn, "logprobs": None, "finish_reason": None}]}
        )
        yield event(envelope | {"choices": [_choice(index, delta={}, logprobs=None)]} | refusal.told)
    yield from _end(refusal, envelope)


def completion(refusal: Refusal) -> Json:
    """Return a blocked `text_completion`."""
    choices = [_choice(index, text=refusal.message, logprobs=None) for index in range(refusal.num_choices)]
    return _envelope(refusal, "text_completion") | {"choices": choices, "usage": refusal.usage} | refusal.told


def completion_stream(refusal: Refusal) -> Iterator[bytes]:
    """Yield a blocked text completion as server-sent events."""
    envelope = _envelope(refusal, "text_completion")
    for index in range(refusal.num_choices):
        yield event(envelope | {"choices": [_choice(index, text=refusal.message, logprobs=None)]} | refusal.told)
    yield from _end(refusal, envelope)


def response(refusal: Refusal, status: str = "incomplete") -> Json:
    """Return a blocked `response`: incomplete, because of the content filter."""
    finished = status == "incomplete"
    told = refusal.told if finished else {}
    return {
        "id": refusal.request_id,
        "object": "response",
        "created_at": refusal.created,
        "model": refusal.model,
        "status": status,
        "incomplete_details": {"reason": "content_filter"} if finished else None,
        "error": None,
        "output": [_message_item(refusal)] if finished else [],
        "usage": _response_usage(refusal) if finished else None,
        "moderation": refusal.moderation if finished else None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        **told,
    }


def response_stream(refusal: Refusal) -> Iterator[bytes]:
    """Yield a blocked response as the Responses API's events."""
    item = _message_item(refusal)
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "refusal", "refusal": ""}
    started = response(refusal, "in_progress")
    events: list[Json] = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item | {"status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **place, "part": part},
        {"type": "response.refusal.delta", **place, "delta": refusal.message},
        {"type": "response.refusal.done", **place, "refusal": refusal.message},
        {"type": "response.content_part.done", **place, "part": item["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.incomplete", "response": response(refusal)},
    ]
    for number, content in enumerate(events):
        yield event(content | {"sequence_number": number}, name=content["type"])


def ended_response(content: Json) -> Json:
    """Return a whole response of vLLM's whose answer the guard ended: vLLM takes it for complete."""
    return content | {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}


def ended_response_event(chunk: bytes) -> bytes:
    """Return one event of vLLM's stream of such a response; the last one says that it is incomplete."""
    _, mark, data = chunk.partition(b"data: ")
    if not mark or b'"response.completed"' not in data:
        return chunk
    content = json.loads(data) | {"type": "response.incomplete"}
    return event(content | {"response": ended_response(content["response"])}, name=content["type"])


def error(message: str, code: str, param: str | None, told: Json | None = None) -> Json:
    """Return OpenAI's error envelope for a request that is at fault; `told` is further keys of the error."""
    about = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"error": about | (told or {})}


def error_stream(content: Json) -> Iterator[bytes]:
    """Yield an error envelope as the end of a chat or completions stream that has begun, as vLLM has it."""
    yield event(content)
    yield b"data: [DONE]\n\n"


def response_error_stream(content: Json) -> Iterator[bytes]:
    """Yield an error envelope as the end of a Responses stream that has begun."""
    about = {key: value for key, value in content["error"].items() if key != "type"}
    yield event({"type": "error", "sequence_number": 0, **about}, name="error")


def moderation(verdict: Verdict | None, model: str, *, with_scores: bool, output: Json) -> Json:
    """Return the `moderation` object of a response whose request asked for one; `output` says of the answer what is
    known.
    """
    return {"input": moderated(verdict, model, with_scores=with_scores), "output": output}


def moderated(verdict: Verdict | None, model: str, *, with_scores: bool) -> Json:
    """Return what the verdict says of the prompt, or of the answer."""
    if verdict is None or verdict.unscored:
        return {"type": "error", "code": "unscored", "message": "There is no score."}
    return _moderation_result(verdict.decision is not Action.ALLOW, verdict.scores if with_scores else {}, model)


def nothing_found(model: str) -> Json:
    """Return what is said of an answer that was watched to its end and crossed nothing."""
    return _moderation_result(False, {}, model)


def not_evaluated(message: str) -> Json:
    """Return what is said of an answer that nobody judged: so, instead of claiming that nothing was found."""
    return {"type": "error", "code": "not_evaluated", "message": message}


PROMPT_ONLY = not_evaluated("The guard judges the prompt, not the output.")
WATCHED = not_evaluated("The guard judges the output while it is generated: see finish_reason.")


def _moderation_result(flagged: bool, scores: dict[str, float], model: str) -> Json:
    result = {
        "type": "moderation_result",
        "model": model,
        "flagged": flagged,
        "categories": dict.fromkeys(scores, flagged),
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
    }
    return {"type": "moderation_results", "model": model, "results": [result]}


def moderation_chunk(refusal: Refusal, kind: str) -> bytes:
    """Return the chunk of a stream that carries the `moderation` object."""
    return event(_envelope(refusal, kind) | {"choices": [], "moderation": refusal.moderation})


def encode(content: Json) -> bytes:
    """Return `content` as compact UTF-8 JSON."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def event(content: Json, name: str | None = None) -> bytes:
    """Return one server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(content) + b"\n\n"


def _envelope(refusal: Refusal, kind: str) -> Json:
    return {"id": refusal.request_id, "object": kind, "created": refusal.created, "model": refusal.model}


def _choice(index: int, **content: Any) -> Json:
    return {"index": index, **content, "finish_reason": "content_filter"}


def _end(refusal: Refusal, envelope: Json) -> Iterator[bytes]:
    if refusal.include_usage:
        yield event(envelope | {"choices": [], "usage": refusal.usage})
    yield b"data: [DONE]\n\n"


def _message_item(refusal: Refusal) -> Json:
    content = [{"type": "refusal", "refusal": refusal.message}]
    return {
        "id": f"msg_{refusal.request_id}",
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": content,
    }


def _response_usage(refusal: Refusal) -> Json:
    return {
        "input_tokens": refusal.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": refusal.prompt_tokens,
    }
