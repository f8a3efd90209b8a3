"""The APIs in which the guard answers: how to ask, which of the clients' own types an answer is, and how it is sent
back.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anthropic.types
import openai.types.chat
import openai.types.responses
from pydantic import TypeAdapter

from tests.serving.server import SERVED_NAME

Json = dict[str, Any]
MORE = {"role": "user", "content": "Thanks. What is a cat?"}


@dataclass(frozen=True)
class Api:
    """One way to ask."""

    name: str
    path: str
    ask: Callable[[list[Json], str], Json]
    """The body of a question: as messages, or as the text that the chat template makes of them."""
    whole: Any
    """Type of a whole answer."""
    event: Any
    """Type of a stream's events; None where the route does not stream."""
    gathered: Callable[[list[Json]], Json]
    """Makes the whole answer of a stream's events, as far as `follow` needs it."""
    follow: Callable[[Json, Json], Json]
    """The question once more, with its answer and a further question."""
    error: Any = openai.types.ErrorObject

    def parse(self, content: Json) -> Any:
        """Read a whole answer as strictly as its client's types allow."""
        return TypeAdapter(self.whole).validate_json(json.dumps(content), strict=True)

    def parse_event(self, content: Json) -> Any:
        """Read one event of a stream likewise."""
        return TypeAdapter(self.event).validate_json(json.dumps(content), strict=True)

    def parse_error(self, content: Json) -> Any:
        """Read an error likewise."""
        about = content if self.error is anthropic.types.ErrorResponse else content["error"]
        return TypeAdapter(self.error).validate_json(json.dumps(about), strict=True)


def _chat_gathered(chunks: list[Json]) -> Json:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    message = {key: "".join(delta.get(key) or "" for delta in deltas) for key in ("content", "refusal")}
    return {"choices": [{"message": {"role": "assistant", **message}}]}


def _chat_follow(question: Json, answer: Json) -> Json:
    return question | {"messages": [*question["messages"], answer["choices"][0]["message"], MORE]}


def _batch_follow(question: Json, answer: Json) -> Json:
    return question | {"messages": [[*question["messages"][0], answer["choices"][0]["message"], MORE]]}


def _text_gathered(chunks: list[Json]) -> Json:
    return {"choices": [{"text": "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])}]}


def _text_follow(question: Json, answer: Json) -> Json:
    return question | {"prompt": question["prompt"] + answer["choices"][0]["text"] + MORE["content"]}


def _messages_gathered(events: list[Json]) -> Json:
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    return {"content": [{"type": "text", "text": text}]}


def _messages_follow(question: Json, answer: Json) -> Json:
    turn = {"role": "assistant", "content": answer["content"]}
    return question | {"messages": [*question["messages"], turn, MORE]}


def _model(**question: Any) -> Json:
    return {"model": SERVED_NAME, "max_tokens": 8, **question}


def _chat(name: str, path: str) -> Api:
    types = openai.types.chat.ChatCompletion, openai.types.chat.ChatCompletionChunk
    return Api(name, path, lambda messages, _: _model(messages=messages), *types, _chat_gathered, _chat_follow)


def _text(name: str, path: str) -> Api:
    types = openai.types.Completion, openai.types.Completion
    return Api(name, path, lambda _, text: _model(prompt=text), *types, _text_gathered, _text_follow)


APIS = (
    _chat("chat", "/v1/chat/completions"),
    Api(
        "batch",
        "/v1/chat/completions/batch",
        lambda messages, _: _model(messages=[messages]),
        openai.types.chat.ChatCompletion,
        None,
        _chat_gathered,
        _batch_follow,
    ),
    _text("completions", "/v1/completions"),
    Api(
        "responses",
        "/v1/responses",
        lambda messages, _: {"model": SERVED_NAME, "max_output_tokens": 8, "input": messages},
        openai.types.responses.Response,
        openai.types.responses.ResponseStreamEvent,
        lambda events: events[-1]["response"],
        lambda question, answer: question | {"input": [*question["input"], *answer["output"], MORE]},
    ),
    Api(
        "messages",
        "/v1/messages",
        lambda messages, _: _model(messages=messages),
        anthropic.types.Message,
        anthropic.types.RawMessageStreamEvent,
        _messages_gathered,
        _messages_follow,
        anthropic.types.ErrorResponse,
    ),
    _chat("sagemaker-chat", "/invocations"),
    _text("sagemaker-completions", "/invocations"),
)
