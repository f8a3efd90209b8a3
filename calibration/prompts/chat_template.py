"""A conversation as the model's chat template writes it, from what vLLM hands to that for `/v1/chat/completions`.

vLLM 0.32 (`vllm/renderers/chat_utils.py`, `hf.py`) gives a template parts of text where the template goes through them,
and else one text; arguments of tool calls as objects; a developer's turn as the system's where the template knows none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from calibration.prompts.messages import Message, ToolCall
from probes.errors import ModelError, PromptError

Turn = dict[str, Any]

_MARKS = ("AAAA", "BBBB")


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a Transformers tokenizer."""

    tokenizer: Any

    def write(self, messages: Sequence[Message], where: str, tools: str = "", options: str = "") -> str:
        """Return the prompt's text with the generation prompt. `tools` and `options` are JSON, or nothing.

        Raises `ModelError` where there is no template, and `PromptError` for `where` if the template refuses.
        """
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the model has no chat template",
                field="chat_template",
                remedy="use a chat model, or add chat_template.jinja to its folder",
            )
        told = json.loads(options) if options else {}
        offered = [_offered(tool) for tool in json.loads(tools)] if tools else None
        try:
            return self.apply(messages, tools=offered, add_generation_prompt=True, **told)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise PromptError(
                f"the model's chat template refuses these messages: {error}",
                field=where,
                remedy="use only the roles, in the order, that the model's chat template knows",
            ) from error

    def apply(self, messages: Sequence[Message], **options: Any) -> str:
        """Return what the template makes of the conversation under `options`. Raises whatever the template raises."""
        return self._apply(self._conversation(messages, options.get("tools")), **options)

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it goes through the parts of a content."""
        parts = [{"type": "text", "text": mark} for mark in _MARKS]
        try:
            text = self._apply([{"role": "user", "content": parts}], add_generation_prompt=True)
        except (TemplateError, TypeError, KeyError, ValueError):
            return False
        return all(mark in text for mark in _MARKS) and "'type'" not in text and '"type"' not in text

    def _apply(self, conversation: Sequence[Turn], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, **options))

    def _conversation(self, messages: Sequence[Message], tools: Any) -> list[Turn]:
        turns = [self._turn(message) for message in messages]
        if all(message.role != "developer" for message in messages):
            return turns
        source = self.tokenizer.get_chat_template(tools=tools)
        return turns if '"developer"' in source or "'developer'" in source else _with_one_system_turn(turns)

    def _turn(self, message: Message) -> Turn:
        as_parts = self.takes_parts and message.role != "tool"
        turn: Turn = {"role": message.role, "content": message.content, **message.besides()}
        if as_parts:
            turn["content"] = [{"type": "text", "text": text} for text in message.texts]
        if message.reasoning:
            turn |= {"reasoning": message.reasoning, "reasoning_content": message.reasoning}
        if message.tool_calls:
            turn["tool_calls"] = [_call(call) for call in message.tool_calls]
        return turn


def _call(call: ToolCall) -> Turn:
    """Return a tool call with its arguments as an object; those that are none are left out, as vLLM does."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except json.JSONDecodeError:
        arguments = {}
    found = call.model_dump(exclude_none=True)
    found["function"]["arguments"] = arguments if isinstance(arguments, dict) else {}
    return found


def _with_one_system_turn(turns: Sequence[Turn]) -> list[Turn]:
    """Return the conversation with developers' turns as the system's: one turn at its start if any is elsewhere."""
    named: list[Turn] = [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in turns]
    system = [turn for turn in named if turn["role"] == "system"]
    if named[: len(system)] == system and len(system) == 1:
        return named
    texts = [_plain(turn["content"]) for turn in system]
    rest = [turn for turn in named if turn["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, texts))}, *rest]


def _plain(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _offered(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as vLLM hands it to the template: known fields only, the usual ones also where they are missing.

    `ChatCompletionToolsParam` in `vllm/entrypoints/openai/chat_completion/protocol.py`.
    """
    function = tool.get("function") or {}
    kept = {key: function.get(key) for key in ("name", "description", "parameters")}
    deferred = tool.get("defer_loading")
    rare = {"strict": function.get("strict"), "defer_loading": function.get("defer_loading", deferred)}
    kept |= {key: value for key, value in rare.items() if value is not None}
    return {"type": "function", "function": kept} | ({} if deferred is None else {"defer_loading": deferred})
