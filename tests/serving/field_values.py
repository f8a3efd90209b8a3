"""A value for every field of docs/inventory.md: what a request has to hold so that the field means something.

A value is the part of a body that goes with it, or makes that part of a prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A prompt in every form that a route takes; the word that stops it stands in its middle."""

    content: str
    text: str
    """As the chat template renders it."""
    ids: list[int]

    @property
    def messages(self) -> list[Json]:
        return [{"role": "user", "content": self.content}]


Value = Json | Callable[[Prompt], Json]

_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}, "required": ["a"]}
_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": _SCHEMA, "strict": True},
}
_NAMED = {"type": "function", "function": {"name": "look"}}
_RESPONSES_TOOL = {"type": "function", "name": "look", "parameters": _SCHEMA, "strict": True}
_TAG = {"begin": "<a>", "schema": _SCHEMA, "end": "</a>"}
_ANTHROPIC_TOOL = {"name": "look", "description": "Look.", "input_schema": _SCHEMA, "strict": True}
_TURN = {"role": "assistant", "content": "Yes."}


def _format(**own: Any) -> Json:
    return {"response_format": own}


def _each(names: str, value: Value) -> dict[str, Value]:
    return {name: value for name in names.split()}  # noqa: C420 - nothing changes them


def _blocks(*blocks: Json, role: str = "user") -> Value:
    """Messages whose last is the prompt, and before it such content blocks."""
    return lambda prompt: {"messages": [{"role": role, "content": list(blocks)}, *prompt.messages]}


_THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100, "stop_sequences": ["e"]}
_NO_THINKING: Json = {"thinking": {"type": "disabled"}}
_ADAPTIVE = {"thinking": {"type": "adaptive", "display": "omitted"}}
_LOOKED = {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": "b"}}
_SEEN = {"type": "tool_result", "tool_use_id": "t1", "content": "A cat.", "is_error": False}
_CHANGED = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": _ANTHROPIC_TOOL}}


def _without_look(prompt: Prompt) -> Json:
    """A system message that takes a tool away."""
    removal = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "look"}}
    return {"tools": [_ANTHROPIC_TOOL], "messages": [{"role": "system", "content": [removal]}, *prompt.messages]}


SHARED: dict[str, Value] = {
    # What the prompt is.
    "documents": {"documents": [{"title": "A", "text": "B"}]},
    "reasoning_effort": {"reasoning_effort": "low"},
    "add_generation_prompt": {"add_generation_prompt": False},
    "continue_final_message": lambda prompt: {
        "messages": [*prompt.messages, {"role": "assistant", "content": "Sure"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "add_special_tokens": {"add_special_tokens": True},
    "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
    "truncate_prompt_tokens": lambda prompt: {"truncate_prompt_tokens": len(prompt.ids) - 2},
    "truncation_side": lambda prompt: {
        "truncate_prompt_tokens": len(prompt.ids) - 1,
        "truncation_side": "right",
    },
    "kv_transfer_params": lambda prompt: {
        "kv_transfer_params": {"prompt_token_ids": prompt.ids, "foreguard": {"a": 1}}
    },
    "tools": {"tools": [_TOOL]},
    "suffix": {"suffix": " and more"},
    # What the answer tells.
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 5},
    "logprob_token_ids": {"logprobs": True, "logprob_token_ids": [5, 6, 7]},
    "prompt_logprobs": {"prompt_logprobs": 5},
    "echo": {"echo": True},
    "n": {"n": 2, "temperature": 1, "seed": 3},
    "stream": {"stream": True},
    "stream_options": {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "stream_interval": {"stream": True, "stream_interval": 2},
    "include_reasoning": {"include_reasoning": False},
    "return_tokens_as_token_ids": {"return_tokens_as_token_ids": True, "logprobs": True, "top_logprobs": 3},
    "return_token_ids": {"return_token_ids": True},
    "return_token_offsets": {"return_token_offsets": True},
    "return_prompt_text": {"return_prompt_text": True},
    "routed_experts_prompt_start": {"routed_experts_prompt_start": 1},
    "skip_special_tokens": {"skip_special_tokens": False},
    "spaces_between_special_tokens": {"spaces_between_special_tokens": False},
    "include_stop_str_in_output": {"include_stop_str_in_output": True, "stop": ["a", "e", "i", "o"]},
    "parallel_tool_calls": {"parallel_tool_calls": False},
    # How tokens are chosen.
    "temperature": {"temperature": 0.7, "seed": 3},
    "seed": {"temperature": 1.0, "seed": 4},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 2},
    "min_p": {"min_p": 0.1},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": 0.5},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "repetition_detection": {"repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 2}},
    "logit_bias": {"logit_bias": {"5": 50}},
    "allowed_token_ids": {"allowed_token_ids": [5, 6, 7]},
    "bad_words": {"bad_words": ["cake", "I"]},
    "max_tokens": {"max_tokens": 1},
    "max_completion_tokens": {"max_completion_tokens": 2},
    "min_tokens": {"min_tokens": 2},
    "stop": {"stop": ["a", "e", "i", "foreguard:blocked"]},
    "stop_token_ids": {"stop_token_ids": list(range(5, 200))},
    "ignore_eos": {"ignore_eos": True},
    "structured_outputs": {"structured_outputs": {"choice": ["yes", "no"]}},
    "response_format": _format(type="json_object"),
    "tool_choice": {"tools": [_TOOL], "tool_choice": "required"},
    "thinking_token_budget": {"thinking_token_budget": 4},
    "watermarking": {"watermarking": False},
    "vllm_xargs": {"vllm_xargs": {"foreguard": "x", "kv_cache_report_mode": "full", "session_id": "a"}},
    # Where and when it runs.
    "priority": {"priority": 0},
    "request_id": {"request_id": "mine"},
    "session_id": {"session_id": "s"},
    "cache_salt": {"cache_salt": "grains"},
    "ec_transfer_params": {"ec_transfer_params": {"foreguard": {"a": 1}}},
    # Refused.
    "use_beam_search": {"use_beam_search": True, "n": 2},
    "chat_template": {"chat_template": "{{ messages[0]['content'] }}"},
    "prompt_embeds": {"prompt_embeds": "AAAA"},
    # Ignored.
    "user": {"user": "u"},
    "metadata": {"metadata": {"user_id": "u"}},
    "length_penalty": {"length_penalty": 2.0},
    "mm_payload": {"mm_payload": "none"},
    "return_mm_kwargs": {"return_mm_kwargs": False},
    "best_of": {"best_of": 2},
    "early_stopping": {"early_stopping": True},
    "guided_decoding_backend": {"guided_decoding_backend": "x"},
}

OWN: dict[str, dict[str, Value]] = {
    "CompletionRequest": {
        "logprobs": {"logprobs": 5},
        "logprob_token_ids": {"logprobs": 5, "logprob_token_ids": [5, 6, 7]},
        "return_tokens_as_token_ids": {"return_tokens_as_token_ids": True, "logprobs": 5},
        "echo": {"echo": True, "logprobs": 5},
        "add_special_tokens": {"add_special_tokens": False},
        "kv_transfer_params": {"kv_transfer_params": {"do_remote_decode": True, "foreguard": {"a": 1}}},
    },
    "BatchChatCompletionRequest": {
        "n": {"n": 1},
        "tool_choice": {"tool_choice": "none"},
        "use_beam_search": {"use_beam_search": True},
        "continue_final_message": lambda prompt: {
            "messages": [[*prompt.messages, {"role": "assistant", "content": "Sure"}]],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    },
    "ResponsesRequest": {
        "instructions": {"instructions": "Be short."},
        "previous_input_messages": lambda prompt: {"previous_input_messages": prompt.messages},
        "previous_response_id": {"previous_response_id": "resp_none"},
        "reasoning": {"reasoning": {"effort": "low"}},
        "tools": {"tools": [_RESPONSES_TOOL]},
        "truncation": {"truncation": "auto"},
        "include": {"include": ["message.output_text.logprobs"], "top_logprobs": 5},
        "top_logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
        "enable_response_messages": {"enable_response_messages": True},
        "background": {"background": True, "store": True},
        "store": {"store": False},
        "temperature": {"temperature": 0.7, "seed": 3},
        "max_output_tokens": {"max_output_tokens": 1},
        "text": {"text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA, "strict": True}}},
        "tool_choice": {"tools": [_RESPONSES_TOOL], "tool_choice": "required"},
        "service_tier": {"service_tier": "flex"},
        "max_tool_calls": {"max_tool_calls": 1},
        "prompt": {"prompt": {"id": "p"}},
        "prompt_cache_key": {"prompt_cache_key": "k"},
    },
    "AnthropicMessagesRequest": {
        "system": {"system": "Be short."},
        "tools": {"tools": [_ANTHROPIC_TOOL]},
        "thinking": _THINKING,
        "output_config": {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}}},
        "temperature": {"temperature": 0.0},
        "stop_sequences": {"stop_sequences": ["a", "e"]},
        "tool_choice": {"tools": [_ANTHROPIC_TOOL], "tool_choice": {"type": "any"}},
    },
    "GenerativeScoringRequest": {
        "query": lambda prompt: {"query": prompt.text},
        "items": {"items": ["yes", "no"]},
        "item_first": {"item_first": True},
        "add_special_tokens": {"add_special_tokens": False},
        "label_token_ids": {"label_token_ids": [5, 6, 7]},
        "apply_softmax": {"apply_softmax": False},
    },
    "StructuredDecisionRequest": {
        "state": lambda prompt: {"state": {"said": prompt.content}},
        "questions": {
            "questions": {"q": {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": None}}}
        },
        "instructions": {"instructions": "Be fair."},
    },
}
"""Where a class has the field in another way, or alone has it."""

INNER: dict[str, dict[str, Value]] = {
    "StreamOptions": {
        "include_usage": {"stream": True, "stream_options": {"include_usage": True}},
        "continuous_usage_stats": {
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    },
    "ChatCompletionToolsParam": _each("type function", {"tools": [_TOOL]})
    | {"defer_loading": {"tools": [_TOOL | {"defer_loading": True}]}},
    "FunctionDefinition": _each("name description parameters strict", {"tools": [_TOOL]})
    | {"defer_loading": {"tools": [{"type": "function", "function": {**_TOOL["function"], "defer_loading": True}}]}},
    "ChatCompletionNamedToolChoiceParam": _each("type function", {"tools": [_TOOL], "tool_choice": _NAMED}),
    "ChatCompletionNamedFunction": {"name": {"tools": [_TOOL], "tool_choice": _NAMED}},
    "ResponseFormat": {
        "type": _format(type="json_object"),
        "json_schema": _format(type="json_schema", json_schema={"name": "a", "schema": _SCHEMA}),
    },
    "JsonSchemaResponseFormat": _each(
        "name description json_schema strict",
        _format(type="json_schema", json_schema={"name": "a", "description": "b", "schema": _SCHEMA, "strict": True}),
    ),
    "StructuralTagResponseFormat": _each(
        "type format",
        _format(type="structural_tag", format={"type": "const_string", "value": "yes"}),
    ),
    "LegacyStructuralTagResponseFormat": _each(
        "type structures triggers",
        _format(type="structural_tag", structures=[_TAG], triggers=["<a"]),
    ),
    "LegacyStructuralTag": _each(
        "begin structural_tag_schema end",
        _format(type="structural_tag", structures=[_TAG], triggers=["<"]),
    ),
    "StructuredOutputsParams": {
        "json": {"structured_outputs": {"json": _SCHEMA}},
        "regex": {"structured_outputs": {"regex": "[a-z]{3}"}},
        "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
        "grammar": {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}},
        "json_object": {"structured_outputs": {"json_object": True}},
        "structural_tag": {
            "structured_outputs": {
                "structural_tag": '{"type": "structural_tag", "format": {"type": "const_string", "value": "yes"}}'
            }
        },
        "disable_any_whitespace": {"structured_outputs": {"json": _SCHEMA, "disable_any_whitespace": True}},
        "disable_additional_properties": {
            "structured_outputs": {"json": _SCHEMA, "disable_additional_properties": True}
        },
        "whitespace_pattern": {"structured_outputs": {"json": _SCHEMA, "whitespace_pattern": " "}},
    },
    "RepetitionDetectionParams": {
        "max_pattern_size": {"repetition_detection": {"max_pattern_size": 2, "min_count": 2}},
        "min_pattern_size": {"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 2, "min_count": 2}},
        "min_count": {"repetition_detection": {"max_pattern_size": 1, "min_count": 4}},
    },
    "AnthropicMessage": _each("role content", lambda prompt: {"messages": [*prompt.messages, _TURN, *prompt.messages]}),
    "AnthropicContentBlock": {
        **_each("type text", _blocks({"type": "text", "text": "Hello."})),
        "source": _blocks({"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/none.png"}}),
        **_each("id name input", _blocks(_LOOKED, role="assistant")),
        **_each("tool_use_id content is_error", _blocks(_SEEN)),
        "tool_name": _blocks({"type": "tool_reference", "tool_name": "look"}),
        **_each(
            "thinking signature",
            _blocks({"type": "thinking", "thinking": "Hm.", "signature": "s"}, role="assistant"),
        ),
        "data": _blocks({"type": "redacted_thinking", "data": "x"}, role="assistant"),
        "tool": _blocks(_CHANGED, role="system"),
    },
    "AnthropicToolChangeDefinition": _each("type definition", _blocks(_CHANGED, role="system")),
    "AnthropicToolChangeReference": _each("type name", _without_look),
    "AnthropicTool": _each("name description input_schema strict", {"tools": [_ANTHROPIC_TOOL]})
    | {"defer_loading": {"tools": [_ANTHROPIC_TOOL | {"defer_loading": True}]}},
    "AnthropicOutputConfig": {
        "effort": {"output_config": {"effort": "high"}},
        "format": {"output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}}},
    },
    "AnthropicJsonOutputFormat": _each(
        "json_schema type", {"output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}}}
    ),
    "AnthropicThinkingConfigEnabled": _each("type budget_tokens display", _THINKING),
    "AnthropicThinkingConfigDisabled": {"type": _NO_THINKING},
    "AnthropicThinkingConfigAdaptive": _each("type display", _ADAPTIVE),
    "AnthropicToolChoice": {
        "type": {"tools": [_ANTHROPIC_TOOL], "tool_choice": {"type": "auto"}},
        "name": {"tools": [_ANTHROPIC_TOOL], "tool_choice": {"type": "tool", "name": "look"}},
        "disable_parallel_tool_use": {
            "tools": [_ANTHROPIC_TOOL],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        },
    },
    "QuestionSpec": _each(
        "type instructions criteria",
        {"questions": {"q": {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": None}}}},
    ),
}
"""Classes that stand inside another."""

GIVEN = ("model", "messages", "prompt", "input", "state", "query", "items", "questions")
"""Fields that every question of their class has anyway."""


def value(kind: str, name: str) -> Value:
    """Return the value of one field. Raises `KeyError` where there is none."""
    for table in (INNER.get(kind, {}), OWN.get(kind, {}), {} if kind in INNER else SHARED):
        if name in table:
            return table[name]
    if name in GIVEN:
        return {}
    raise KeyError(f"{kind}.{name}")
