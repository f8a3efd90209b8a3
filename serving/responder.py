"""The responder: holds one HTTP answer back until its verdict is known, then lets it go, marks it or replaces it.

The decision comes before the first token, so before the first byte: a streamed request still gets a true status code.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from guard.policy import Policy
from serving import shapes
from serving.exchange import Exchange
from serving.shapes import Refusal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """How one OpenAI route says that it was blocked."""

    param: str
    whole: Callable[[Refusal], dict[str, Any]]
    stream: Callable[[Refusal], Iterator[bytes]]
    chunk: str | None
    """`object` of a streamed chunk, where the route streams chunks."""


ROUTES = {
    "/v1/chat/completions": Route("messages", shapes.chat, shapes.chat_stream, "chat.completion.chunk"),
    "/v1/completions": Route("prompt", shapes.completion, shapes.completion_stream, "text_completion"),
    "/v1/responses": Route("input", shapes.response, shapes.response_stream, None),
}


class Responder:
    """One guarded answer. `send` stands in for the server's own."""

    def __init__(self, send: Send, route: Route, exchange: Exchange, policy: Policy, model: str, body: bytes) -> None:
        self._send = send
        self._route = route
        self._exchange = exchange
        self._policy = policy
        self._model = model
        self._body = body
        self._held: list[Message] = []
        self._open = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Take one message of vLLM's answer."""
        if self._replaced:
            return
        if self._open:
            await self._send(message)
            return
        self._held.append(message)
        if message["type"] == "http.response.body" and (not message.get("more_body", False) or self._may_release()):
            await self._release()

    def _may_release(self) -> bool:
        # JSON that gets a moderation object must be there as a whole.
        needs_whole = self._exchange.wants_moderation and not self._is_stream(self._held[0])
        return self._exchange.decided and (not needs_whole or self._must_replace())

    async def _release(self) -> None:
        if self._must_replace():
            self._replaced = True
            await self._replace()
            return
        self._open = True
        start, *rest = self._held
        if self._exchange.prompts:
            start["headers"] = [*start["headers"], *self._guard_headers()]
            if self._exchange.wants_moderation and start["status"] == 200:
                rest = self._with_moderation(start, rest)
        for message in (start, *rest):
            await self._send(message)

    def _must_replace(self) -> bool:
        exchange = self._exchange
        return exchange.blocked or (exchange.any_blocked and self._policy.response.style == "error")

    async def _replace(self) -> None:
        if self._policy.response.style == "error":
            content = shapes.error(self._policy.response.message, "content_filter", self._route.param)
            await self._send_whole(400, content)
        elif self._is_stream(self._held[0]):
            await self._send_stream()
        else:
            await self._send_whole(200, self._moderated(self._route.whole(self._refusal())))

    async def _send_whole(self, status: int, content: dict[str, Any]) -> None:
        body = shapes.encode(content)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *self._guard_headers(),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _send_stream(self) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), *self._guard_headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if chunk := self._moderation_chunk():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        body = b"".join(self._route.stream(self._refusal()))
        await self._send({"type": "http.response.body", "body": body})

    def _refusal(self) -> Refusal:
        prompts = self._exchange.prompts
        return Refusal(
            request_id=prompts[0].request_id,
            model=prompts[0].model or self._model,
            created=self._exchange.created,
            message=self._policy.response.message,
            num_choices=sum(prompt.n for prompt in prompts),
            prompt_tokens=sum(prompt.num_tokens for prompt in prompts),
            include_usage=self._asks_for_usage(),
            moderation=self._moderation() if self._exchange.wants_moderation else None,
        )

    def _asks_for_usage(self) -> bool:
        # vLLM has accepted the body by now, so it is an object and its stream options are of the right kind.
        return bool((json.loads(self._body).get("stream_options") or {}).get("include_usage"))

    def _guard_headers(self) -> list[tuple[bytes, bytes]]:
        verdict = self._exchange.verdict
        headers = {"x-guardrail-decision": self._exchange.decision, "x-guardrail-policy": self._policy.label}
        if verdict is not None:
            headers["x-guardrail-event-id"] = verdict.event_id
        if self._exchange.answer is not None:
            headers["x-guardrail-answer"] = self._exchange.answer.action.value
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    def _with_moderation(self, start: Message, rest: list[Message]) -> list[Message]:
        if self._is_stream(start):
            return [{"type": "http.response.body", "body": self._moderation_chunk(), "more_body": True}, *rest]
        body = b"".join(message.get("body", b"") for message in rest)
        moderated = shapes.encode(self._moderated(json.loads(body)))
        kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        start["headers"] = [*kept, (b"content-length", str(len(moderated)).encode())]
        return [{"type": "http.response.body", "body": moderated}]

    def _moderated(self, content: dict[str, Any]) -> dict[str, Any]:
        return content | {"moderation": self._moderation()} if self._exchange.wants_moderation else content

    def _moderation_chunk(self) -> bytes:
        if self._route.chunk is None or not self._exchange.wants_moderation:
            return b""  # the Responses API has typed events only; a refusal's last one holds the object
        return shapes.moderation_chunk(self._refusal(), self._route.chunk)

    def _moderation(self) -> dict[str, Any]:
        exchange, model = self._exchange, self._policy.label
        output = self._moderated_output()
        return shapes.moderation(exchange.verdict, model, with_scores=exchange.sees_scores, output=output)

    def _moderated_output(self) -> dict[str, Any]:
        exchange, model = self._exchange, self._policy.label
        if not self._policy.answer_rules or exchange.blocked:
            return shapes.PROMPT_ONLY
        if self._is_stream(self._held[0]):
            return shapes.WATCHED
        if exchange.answer is None:
            return shapes.nothing_found(model)
        return shapes.moderated(exchange.answer, model, with_scores=exchange.sees_scores)

    @staticmethod
    def _is_stream(start: Message) -> bool:
        return any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in start["headers"]
        )
