"""Asking the demo's questions through the official client, and noting what comes back and when."""

import secrets
import time
from dataclasses import dataclass
from typing import Any

import openai

from guard.verdict import Action
from serving.demo.questions import Question

KEY = secrets.token_urlsafe(16)
"""Of this run of the demo, which alone sees scores with it."""
MODEL = "demo"
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back to one question."""

    question: Question
    action: Action
    finish_reason: str
    text: str
    scores: dict[str, float]
    seconds: float
    """Until the first token of a streamed answer, or the whole of another."""

    @property
    def says_what_was_done(self) -> bool:
        """Whether the answer ends with the content filter exactly when it was blocked."""
        return (self.finish_reason == "content_filter") == (self.action is Action.BLOCK)


def ask(client: openai.OpenAI, question: Question) -> Answer:
    """Ask one question; the demo's caller sees scores, and is otherwise treated like everyone."""
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": question.messages,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "extra_body": {"moderation": {"mode": "score"}},
    }
    return _streamed(client, question, options) if question.stream else _whole(client, question, options)


def _whole(client: openai.OpenAI, question: Question, options: dict[str, Any]) -> Answer:
    began = time.perf_counter()
    raw = client.chat.completions.with_raw_response.create(**options)
    seconds = time.perf_counter() - began
    reply = raw.parse()
    choice = reply.choices[0]
    text = choice.message.content or ""
    return Answer(question, _action(raw.headers), choice.finish_reason, text, _scores(reply.to_dict()), seconds)


def _streamed(client: openai.OpenAI, question: Question, options: dict[str, Any]) -> Answer:
    began = time.perf_counter()
    seconds, text, finish_reason = 0.0, "", ""
    scores: dict[str, float] = {}
    with client.chat.completions.with_streaming_response.create(stream=True, **options) as raw:
        for chunk in raw.parse():
            scores = scores or _scores(chunk.to_dict())
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish_reason = choice.finish_reason or finish_reason
            seconds = seconds or (time.perf_counter() - began if text else 0.0)
        action = _action(raw.headers)
    return Answer(question, action, finish_reason, text, scores, seconds)


def _action(headers: Any) -> Action:
    return Action(headers["x-guardrail-decision"])


def _scores(reply: dict[str, Any]) -> dict[str, float]:
    results = reply.get("moderation", {}).get("input", {}).get("results") or [{}]
    scores: dict[str, float] = results[0].get("category_scores", {})
    return scores
