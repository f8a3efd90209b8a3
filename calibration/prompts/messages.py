"""Turns of a conversation, as OpenAI's chat completions and ShareGPT's files have them.

A turn's content is text. It may come in parts, and both are kept: a chat template gets the parts if it asks for them.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_NOT_RENDERED = ("refusal", "annotations", "audio", "reasoning_content")
"""Of an assistant's turn in a log: what vLLM gives to no chat template, or knows by another name."""


class Function(BaseModel):
    """What a tool call calls."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    arguments: Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else json.dumps(value))] = (
        ""
    )
    """JSON."""


class ToolCall(BaseModel):
    """One tool call of an assistant's turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    """All of its text, parts one below the other."""
    parts: tuple[str, ...] = ()
    """Its parts, if there are several."""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        turn = {key: each for key, each in value.items() if each not in (None, [], {})}
        if "reasoning" not in turn and "reasoning_content" in turn:
            turn["reasoning"] = turn["reasoning_content"]
        for key in _NOT_RENDERED:
            turn.pop(key, None)
        content = turn.get("content", "")
        if isinstance(content, list | tuple):
            parts = [_text(part) for part in content]
            turn |= {"content": "\n".join(parts), "parts": parts if len(parts) > 1 else []}
        else:
            turn["content"] = content
        return turn

    @field_validator("content")
    @classmethod
    def _has_no_lone_surrogates(cls, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half of a surrogate pair, which is no character") from error
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.content.strip() and self.role != "tool" and not self.tool_calls:
            raise ValueError("content: a turn without text says nothing")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """Its parts; one, if it came whole, and none, if it has no text."""
        return self.parts or ((self.content,) if self.content else ())

    def to_openai(self) -> dict[str, Any]:
        """Return the turn as a request to chat completions has it."""
        content = [{"type": "text", "text": text} for text in self.parts] if self.parts else self.content
        reasoning = {"reasoning": self.reasoning} if self.reasoning else {}
        return {"role": self.role, "content": content, **reasoning, **self.besides()}

    def besides(self) -> dict[str, Any]:
        """Return what a request has in this turn besides role, content and reasoning."""
        calls = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        found = {"name": self.name, "tool_calls": calls, "tool_call_id": self.tool_call_id}
        return {key: value for key, value in found.items() if value}


def of_sharegpt(turns: Any) -> Any:
    """Return the turns of a ShareGPT `conversations` list as messages; what is no such list comes back as it is."""
    if not isinstance(turns, list | tuple):
        return turns
    return [_of_sharegpt(turn) if isinstance(turn, Mapping) and "from" in turn else turn for turn in turns]


def asked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the conversation up to what the model is to answer: an answer that a log has at the end is left out.

    Raises `ValueError` where nothing is asked.
    """
    kept = list(messages)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    if not kept or kept[-1].role not in ("user", "tool"):
        raise ValueError("nothing is asked: the last message must be the user's or a tool's, or an answer to one")
    return tuple(kept)


def _of_sharegpt(turn: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    said = turn["from"]
    role = _SHAREGPT_ROLES.get(said, said) if isinstance(said, str) else said
    return {"role": role, "content": turn.get("value"), **rest}


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text") and "text" in part:
        return str(part["text"])
    if isinstance(part, Mapping) and part.get("type") == "text":
        raise ValueError("content: a part of type 'text' has no 'text'")
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ValueError(f"content: a part of type {kind!r} is no text, and probes are calibrated on text alone")
