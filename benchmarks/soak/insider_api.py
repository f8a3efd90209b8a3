"""The soak's insider in the API server: ASGI middleware that keeps a ledger of prompts. Named by vLLM's `--middleware`.

vLLM puts the guard's own middleware around it, so its `generate` lies between the guard's and vLLM's: it sees every
prompt that the guard passed on, and whatever became of it. It is no part of the guard, and only a soak's server has it.

`GET /soak/ledger` gives the ledger, cheaply; `GET /soak/census` what lives in both processes.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.soak.census import census

KIND = "x-soak-kind"
"""Request header: the kind of request, under which its prompts are entered."""

LEDGER, CENSUS = "/soak/ledger", "/soak/census"

Message = MutableMapping[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Generate = Callable[..., AsyncGenerator[Any, None]]

_kind: ContextVar[str] = ContextVar("soak_kind", default="untagged")


@dataclass(slots=True)
class Entry:
    """What became of the requests of one kind, and of their prompts."""

    requests: int = 0
    answered: int = 0
    """HTTP requests whose handler has ended, however it ended."""
    prompts: int = 0
    """Prompts given to vLLM's `generate`."""
    ended: int = 0
    """Of those: the last output was taken."""
    left: int = 0
    """Of those: nobody waited for the last output."""
    failed: int = 0
    """Of those: vLLM raised an error."""


class SoakMiddleware:
    """Counts prompts by kind, and what vLLM was given and gave up."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._engine_client: Any = None
        self._entries: dict[str, Entry] = {}
        self._added = 0
        self._given_up = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._joining(scope, send))
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == LEDGER:
            await _answer(send, self._ledger())
        elif scope["path"] == CENSUS:
            await _answer(send, await self._census())
        else:
            await self._entered(scope, receive, send)

    def _joining(self, scope: Scope, send: Send) -> Send:
        async def join_when_started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._join(scope["app"].state.engine_client)
            await send(message)

        return join_when_started

    def _join(self, engine_client: Any) -> None:
        self._engine_client = engine_client
        engine_client.generate = self._entering(engine_client.generate)
        processor = engine_client.output_processor
        processor.add_request = self._counting_added(processor.add_request)
        processor.abort_requests = self._counting_given_up(processor.abort_requests)

    def _entering(self, generate: Generate) -> Generate:
        async def entered(*args: Any, **options: Any) -> AsyncGenerator[Any, None]:
            entry = self._entry(_kind.get())
            entry.prompts += 1
            outputs = generate(*args, **options)
            outcome = "left"
            try:
                async for output in outputs:
                    yield output
                outcome = "ended"
            except Exception:
                outcome = "failed"
                raise
            finally:
                setattr(entry, outcome, getattr(entry, outcome) + 1)
                await outputs.aclose()

        return entered

    def _counting_added(self, add_request: Callable[..., None]) -> Callable[..., None]:
        def added(request: Any, prompt: Any, parent: Any = None, index: int = 0, *args: Any, **options: Any) -> None:
            # A prompt with n completions is added n times.
            self._added += index == 0
            add_request(request, prompt, parent, index, *args, **options)

        return added

    def _counting_given_up(self, abort_requests: Callable[..., list[str]]) -> Callable[..., list[str]]:
        inside = False

        def given_up(request_ids: Any, *args: Any, **options: Any) -> list[str]:
            # vLLM aborts a prompt by its own or its parent's id, and for a parent calls itself with the children's. It
            # returns the sequences that it still had: none if the last output was there, but not taken.
            nonlocal inside
            if inside:
                return abort_requests(request_ids, *args, **options)
            inside = True
            try:
                asked = [[request_id] for request_id in request_ids]
                aborted = [abort_requests(one, *args, **options) for one in asked]
            finally:
                inside = False
            self._given_up += sum(map(bool, aborted))
            return [request_id for each in aborted for request_id in each]

        return given_up

    async def _entered(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = next((value.decode() for key, value in scope["headers"] if key == KIND.encode()), "untagged")
        entry = self._entry(name)
        entry.requests += 1
        token = _kind.set(name)
        try:
            await self.app(scope, receive, send)
        finally:
            _kind.reset(token)
            entry.answered += 1

    def _entry(self, kind: str) -> Entry:
        return self._entries.setdefault(kind, Entry())

    def _ledger(self) -> dict[str, Any]:
        return {
            "kinds": {name: asdict(entry) for name, entry in self._entries.items()},
            "added": self._added,
            "given_up": self._given_up,
            "in_flight": self._engine_client.output_processor.get_num_unfinished_requests(),
        }

    async def _census(self) -> dict[str, Any]:
        [engine] = await self._engine_client.collective_rpc("soak_census")
        return {"api": census([self._engine_client.output_processor]), "engine": engine}


async def _answer(send: Send, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
