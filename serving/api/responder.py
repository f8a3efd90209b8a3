"""The responder: holds one HTTP answer back until its verdict is known, then lets it go, marks it or replaces it.

The decision comes before the first token, so before the first byte: a streamed request still gets a true status code.
The one exception is a stream that vLLM keeps alive with comments while it waits: its status leaves with the first
comment, and the verdict is then told in the stream.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import MutableHeaders

from serving.api import shapes
from serving.api.exchange import Exchange
from serving.api.guard_headers import guard_headers, guardrail
from serving.api.held_answer import HeldAnswer
from serving.api.request_body import Message
from serving.api.routes import Route
from serving.api.shapes import Json, Refusal

Send = Callable[[Message], Awaitable[None]]

PENDING = "pending"
"""`x-guardrail-decision` of a stream whose headers left before its verdict came."""


class Responder:
    """One guarded answer. `send` stands in for the server's own."""

    def __init__(self, send: Send, route: Route, exchange: Exchange, model: str) -> None:
        self._send = send
        self._route = route
        self._exchange = exchange
        self._policy = exchange.policy
        self._model = model
        self._held = HeldAnswer()
        self._begun = False
        """Whether the status and the headers have left."""
        self._open = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Take one message of vLLM's answer."""
        if self._replaced:
            return
        if self._open:
            await self._send(self._mended(message))
        elif self._held.is_comment(message):
            await self._begin_pending()
            await self._send(message)
        else:
            self._held.add(message)
            if self._held.is_whole or (self._held.bodies and self._held.is_stream and self._exchange.decided):
                await self._release()

    async def _begin_pending(self) -> None:
        if not self._begun:
            headers = {"x-guardrail-decision": PENDING, "x-guardrail-policy": self._policy.label}
            await self._begin(self._held.start, headers)

    async def _begin(self, start: Message, own_headers: dict[str, str]) -> None:
        self._begun = True
        headers = MutableHeaders(raw=list(start["headers"]))
        headers.update(own_headers)
        await self._send({**start, "headers": headers.raw})

    async def _release(self) -> None:
        self._route = self._route.answering(self._held.own or {})
        if self._must_replace():
            self._replaced = True
            await self._replace()
            return
        self._open = True
        bodies = self._held.bodies
        if self._exchange.prompts and self._held.status == 200:
            bodies = self._marked_stream(bodies) if self._held.is_stream else self._marked(bodies)
        if not self._begun:
            await self._begin(self._held.start, guard_headers(self._exchange) if self._exchange.prompts else {})
        for message in bodies:
            await self._send(self._mended(message))

    def _must_replace(self) -> bool:
        exchange = self._exchange
        if self._policy.response.style == "error":
            return exchange.any_blocked
        # An echo has the prompt's tokens, which only vLLM can tell: its own answer has the message in its place
        # already.
        echoed = self._route.echoes and exchange.wants_echo and self._held.status == 200
        return exchange.blocked and not echoed

    async def _replace(self) -> None:
        if self._policy.response.style == "error":
            await self._replace_by_error()
        elif self._held.is_stream:
            body = self._moderation_chunk() + b"".join(self._route.stream(self._refusal()))
            await self._send_anew(200, "text/event-stream; charset=utf-8", body)
        else:
            body = shapes.encode(self._moderated(self._route.whole(self._refusal())))
            await self._send_anew(200, "application/json", body)

    async def _replace_by_error(self) -> None:
        response, told = self._policy.response, {"guardrail": guardrail(self._exchange)}
        content = self._route.error(response.message, "content_filter", self._route.param, told)
        if self._begun:
            await self._send({"type": "http.response.body", "body": b"".join(self._route.error_stream(content))})
        else:
            await self._send_anew(400, "application/json", shapes.encode(content))

    async def _send_anew(self, status: int, kind: str, body: bytes) -> None:
        """Send another body under the headers of vLLM's answer, but for those that are about its own body."""
        if not self._begun:
            headers = MutableHeaders(raw=list(self._held.start["headers"]))
            headers["content-type"] = kind
            if self._held.is_stream and status == 200:
                del headers["content-length"]
            else:
                headers["content-length"] = str(len(body))
            await self._begin(
                {**self._held.start, "status": status, "headers": headers.raw}, guard_headers(self._exchange)
            )
        await self._send({"type": "http.response.body", "body": body})

    def _refusal(self) -> Refusal:
        prompts, own = self._exchange.prompts, self._held.own or {}
        return Refusal(
            request_id=str(own.get("id") or prompts[0].request_id),
            model=prompts[0].model or self._model,
            created=own.get("created") or own.get("created_at") or self._exchange.created,
            message=self._policy.response.message,
            message_in=self._policy.response.message_in,
            num_choices=sum(prompt.n for prompt in prompts),
            prompt_tokens=sum(prompt.num_tokens for prompt in prompts),
            include_usage=self._exchange.wants_usage,
            moderation=self._moderation() if self._exchange.wants_moderation else None,
            guardrail=guardrail(self._exchange),
        )

    def _marked_stream(self, bodies: list[Message]) -> list[Message]:
        """Return the stream so far with what the guard has to say in it."""
        if self._begun or self._exchange.any_blocked:
            bodies = self._held.with_first_event(bodies, {"guardrail": guardrail(self._exchange)})
        chunk = self._moderation_chunk()
        return [{"type": "http.response.body", "body": chunk, "more_body": True}, *bodies] if chunk else bodies

    def _marked(self, bodies: list[Message]) -> list[Message]:
        """Return a whole answer with what the guard has to say in it."""
        exchange, own = self._exchange, self._held.own
        stopped = exchange.any_blocked or exchange.answer_blocked
        if own is None or not (exchange.wants_moderation or stopped):
            return bodies
        # Of a response, a later turn may be blocked: one that follows the model's own calls of built-in tools.
        if stopped and self._route.ended is not None:
            own = self._route.ended(own)
        if stopped:
            own = own | {"guardrail": guardrail(self._exchange)}
        body = shapes.encode(self._moderated(own))
        headers = MutableHeaders(raw=list(self._held.start["headers"]))
        headers["content-length"] = str(len(body))
        self._held.start["headers"] = headers.raw
        return [{"type": "http.response.body", "body": body}]

    def _mended(self, message: Message) -> Message:
        """Return a part of an open stream, whose end says so where the guard ended the answer in its middle."""
        mend = self._route.ended_event
        stopped = self._exchange.any_blocked or self._exchange.answer_blocked
        if mend is None or not (self._held.is_stream and stopped):
            return message
        return {**message, "body": mend(message.get("body", b""))}

    def _moderated(self, content: Json) -> Json:
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
        if self._held.is_stream:
            return shapes.WATCHED
        if exchange.answer is None:
            return shapes.nothing_found(model)
        return shapes.moderated(exchange.answer, model, with_scores=exchange.sees_scores)
