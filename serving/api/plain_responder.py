"""The plain responder: one answer of a route whose forms the guard does not know.

Until a prompt reaches the engine it lets everything through. From then on it waits for the verdict. Where anything of
the request was blocked, the client gets an HTTP error in place of the route's own answer, also where that is an error.
"""

from serving.api import shapes
from serving.api.exchange import Exchange
from serving.api.guard_headers import guard_headers, guardrail
from serving.api.held_answer import HeldAnswer
from serving.api.request_body import Message
from serving.api.responder import Send

_BODY = "http.response.body"


class PlainResponder:
    """One answer. `send` stands in for the server's own."""

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self._exchange = exchange
        self._held = HeldAnswer()
        self._waiting: list[Message] = []
        self._begun = False
        """Whether the status and the headers have left."""
        self._ended = False

    async def send(self, message: Message) -> None:
        """Take one message of vLLM's answer."""
        if self._ended:
            return
        self._waiting.append(message)
        if message["type"] == "http.response.start":
            self._held.add(message)
        elif not self._must_wait(message):
            await (self._end() if self._exchange.any_blocked else self._let_go())

    async def fail(self, error: Exception) -> None:
        """Take an error that vLLM's route raised. Raises it again where the guard blocked nothing."""
        if self._ended or self._begun or not self._exchange.any_blocked:
            raise error
        await self._end()

    def _must_wait(self, message: Message) -> bool:
        exchange = self._exchange
        return bool(message.get("more_body") and exchange.prompts and not exchange.decided and not exchange.any_blocked)

    async def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            if message["type"] == "http.response.start":
                self._begun = True
                message = self._with_headers(message)
            await self._send(message)

    def _with_headers(self, start: Message) -> Message:
        if not self._exchange.prompts:
            return start
        told = guard_headers(self._exchange).items()
        return {**start, "headers": [*start["headers"], *((name.encode(), text.encode()) for name, text in told)]}

    async def _end(self) -> None:
        """Say that the request was blocked, by a status where none has left."""
        self._ended = True
        about = guardrail(self._exchange)
        content = shapes.error(self._exchange.policy.response.message, "content_filter", None, {"guardrail": about})
        if self._begun:
            await self._send(
                {"type": _BODY, "body": b"".join(shapes.error_stream(content)) if self._held.is_stream else b""}
            )
            return
        body = shapes.encode(content)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        told = (headers | guard_headers(self._exchange)).items()
        encoded = [(name.encode(), text.encode()) for name, text in told]
        await self._send({"type": "http.response.start", "status": 400, "headers": encoded})
        await self._send({"type": _BODY, "body": body})
