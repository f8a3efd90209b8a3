"""The kinds of requests that the soak's own client mixes into the load: what each sends, and what must come back.

An answer that is cut is one whose client hangs up: after some time, wherever the request is by then, or after some
chunks.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.cost.subjects import MODEL
from benchmarks.soak.prompts import TOO_LONG_CHARACTERS, Prompts

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

Body = dict[str, Any] | bytes
MakeBody = Callable[[Prompts, random.Random], Body]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request."""

    name: str
    path: str
    body: MakeBody
    prompts: int = 1
    """How many prompts reach vLLM with one request; of a cut one, at most."""
    status: int = 200
    cut_after_s: tuple[float, float] | None = None
    """Hang up after a time between these, whatever has come."""
    cut_after_chunks: tuple[int, int] | None = None
    """Hang up after a number of streamed chunks between these."""
    pause_s: float = 0.0
    """How long the client takes over each chunk."""
    half_body: bool = False
    """Whether the client sends only half of the body, and hangs up instead of the rest."""

    @property
    def is_cut(self) -> bool:
        """Whether the client hangs up."""
        return self.cut_after_s is not None or self.cut_after_chunks is not None

    @property
    def fails_in_engine(self) -> bool:
        """Whether vLLM refuses the prompt only when it is given to the engine client."""
        return self.status != 200 and self.prompts > 0


def _chat(tokens: int = 12, **options: Any) -> MakeBody:
    def make(prompts: Prompts, chance: random.Random) -> Body:
        messages = [{"role": "user", "content": prompts.one(chance)}]
        return {"model": MODEL, "messages": messages, "max_tokens": chance.randint(1, tokens), **options}

    return make


def _long_chat(tokens: int = 12, characters: int | None = None, **options: Any) -> MakeBody:
    def make(prompts: Prompts, chance: random.Random) -> Body:
        text = prompts.long(chance) if characters is None else prompts.long(chance, characters)
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **options}

    return make


def _completion(tokens: int = 12, count: int = 1, **options: Any) -> MakeBody:
    def make(prompts: Prompts, chance: random.Random) -> Body:
        texts = [prompts.one(chance) for _ in range(count)]
        return {"model": MODEL, "prompt": texts if count > 1 else texts[0], "max_tokens": tokens, **options}

    return make


def _response(tokens: int = 12, **options: Any) -> MakeBody:
    def make(prompts: Prompts, chance: random.Random) -> Body:
        return {"model": MODEL, "input": prompts.one(chance), "max_output_tokens": tokens, **options}

    return make


def _fixed(body: Body) -> MakeBody:
    return lambda _prompts, _chance: body


_STREAM: dict[str, Any] = {"stream": True}
_ENDLESS: dict[str, Any] = {"stream": True, "ignore_eos": True}

ANSWERED = (
    Kind("chat", CHAT, _chat()),
    Kind("chat stream", CHAT, _chat(stream_options={"include_usage": True}, **_STREAM)),
    Kind("chat, long", CHAT, _long_chat()),
    Kind("chat, moderated", CHAT, _chat(moderation={"mode": "block"})),
    Kind("chat, 3 choices", CHAT, _chat(n=3, temperature=1.0)),
    Kind("chat stream, 2 choices", CHAT, _chat(n=2, temperature=1.0, **_STREAM)),
    Kind("chat, logprobs", CHAT, _chat(logprobs=True, top_logprobs=2)),
    Kind("chat stream, read slowly", CHAT, _chat(24, **_ENDLESS), pause_s=0.03),
    Kind("completion", COMPLETIONS, _completion(stop=["."])),
    Kind("completion stream", COMPLETIONS, _completion(**_STREAM)),
    Kind("completion, 4 prompts", COMPLETIONS, _completion(count=4), prompts=4),
    Kind("completion stream, 3 prompts", COMPLETIONS, _completion(count=3, **_STREAM), prompts=3),
    Kind("completion, echo", COMPLETIONS, _completion(echo=True, logprobs=1)),
    Kind("response", RESPONSES, _response()),
    Kind("response stream", RESPONSES, _response(**_STREAM)),
)

REFUSED = (
    Kind("oversize", CHAT, _long_chat(characters=TOO_LONG_CHARACTERS), prompts=0, status=400),
    Kind("oversize, one of 2 prompts", COMPLETIONS, _fixed({"model": MODEL, "prompt": ["a", "b " * 6000]}), 0, 400),
    Kind("malformed JSON", CHAT, _fixed(b'{"messages": ['), 0, 400),
    Kind("no messages", CHAT, _fixed({"model": MODEL, "messages": []}), 0, 400),
    Kind("unknown model", CHAT, _chat(model="another"), 0, 404),
    Kind("malformed moderation", CHAT, _chat(moderation={"mode": "allow"}), 0, 400),
    Kind("impossible grammar", COMPLETIONS, _completion(structured_outputs={"regex": "("}), 1, 400),
)

CUT = (
    Kind("cut at once", CHAT, _chat(64), cut_after_s=(0.0, 0.01)),
    Kind("cut in the body", CHAT, _long_chat(), prompts=0, cut_after_s=(0.01, 0.1), half_body=True),
    Kind("cut early", CHAT, _chat(64, **_STREAM), cut_after_s=(0.0, 0.1)),
    Kind("cut, long prompt", CHAT, _long_chat(64), cut_after_s=(0.01, 0.3)),
    Kind("cut, not streamed", CHAT, _chat(200, ignore_eos=True), cut_after_s=(0.1, 0.6)),
    Kind("cut after the first chunk", CHAT, _chat(200, **_ENDLESS), cut_after_chunks=(1, 1)),
    Kind("cut in the middle", CHAT, _chat(200, **_ENDLESS), cut_after_chunks=(2, 12)),
    Kind("cut, 2 choices", CHAT, _chat(64, n=2, temperature=1.0, **_STREAM), cut_after_s=(0.0, 0.5)),
    Kind("cut, 4 prompts", COMPLETIONS, _completion(32, count=4), prompts=4, cut_after_s=(0.0, 0.4)),
    Kind("cut response", RESPONSES, _response(100, **_STREAM), cut_after_chunks=(1, 8)),
)

KINDS = (*ANSWERED, *REFUSED, *CUT)
