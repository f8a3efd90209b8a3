"""Conversations are written as vLLM writes them: every trick of templates, with vLLM's own functions beside ours."""

import json

import pytest
from vllm.config import ModelConfig
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import _detect_content_format, safe_apply_chat_template

from calibration.prompts.chat_template import ChatTemplate
from calibration.prompts.prompt_file import load_prompts
from probes.errors import PromptError

OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TEMPLATES = {
    "text": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + OPEN,
    "parts": "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "[{{ part['text'] }}]{% endif %}{% endfor %}{% endfor %}" + OPEN,
    "either": "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}" + OPEN,
    "tools": "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}{% for m in messages %}"
    "<|{{ m.role }}|>{{ m.content }}{% if m.name %}({{ m.name }}){% endif %}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}{% for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}"
    "{% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}" + OPEN,
    "developer": "{% for m in messages %}{% if m.role == 'developer' %}<|dev|>{% else %}<|{{ m.role }}|>{% endif %}"
    "{{ m.content }}{% endfor %}" + OPEN,
    "options": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if reasoning_effort is defined %}"
    "effort {{ reasoning_effort }}{% endif %}" + OPEN + "{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}",
    "reasoning": "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}({{ m.reasoning_content }})"
    "{% endif %}{{ m.content }}{% endfor %}" + OPEN,
    "date": "{{ strftime_now('%Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}" + OPEN,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def call(arguments):
    """An assistant's turn without text that calls a tool."""
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def result(content):
    """A tool's answer to that call."""
    return {"role": "tool", "tool_call_id": "c1", "content": content}


USER = {"role": "user", "content": "Is it cold in Oslo?"}
YES = {"role": "assistant", "content": "Yes."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Read this."}, {"type": "text", "text": "Then sum up."}]}
REQUESTS = {
    "a text": {"messages": [USER]},
    "one part": {"messages": [{"role": "user", "content": PARTS["content"][:1]}]},
    "parts": {"messages": [{"role": "system", "content": PARTS["content"]}, PARTS]},
    "a tool's result": {"messages": [USER, call('{"city": "Oslo"}'), result("-3")], "tools": TOOLS},
    "a result in parts": {"messages": [USER, call("{}"), result(PARTS["content"])]},
    "no arguments": {"messages": [USER, call(""), result("-3"), USER]},
    "broken arguments": {"messages": [USER, call('{"city": '), result("-3"), USER]},
    "arguments that are a list": {"messages": [USER, call("[1]"), result("-3"), USER]},
    "no tool calls": {"messages": [USER, YES | {"tool_calls": []}, USER]},
    "a developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "a developer later": {
        "messages": [
            {"role": "system", "content": "Be kind."},
            USER,
            YES,
            {"role": "developer", "content": PARTS["content"]},
            USER,
        ]
    },
    "a name": {"messages": [USER | {"name": "Ada"}]},
    "a thought": {"messages": [USER, YES | {"reasoning": "North."}, USER]},
    "no thinking": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "an effort": {"messages": [USER], "chat_template_kwargs": {"reasoning_effort": "low"}},
}


@pytest.fixture(scope="module")
def model_config(planted):
    """vLLM's, of any model: that of a text model."""
    return ModelConfig(str(planted.folder))


def of_vllm(model_config, tokenizer, request):
    """The prompt as vLLM's renderer writes it."""
    how = _detect_content_format(tokenizer.chat_template, default="string")
    messages = json.loads(json.dumps(request["messages"]))
    conversation, *_ = parse_chat_messages(messages, model_config, how)
    options = {"add_generation_prompt": True, "tokenize": False, **request.get("chat_template_kwargs", {})}
    return safe_apply_chat_template(model_config, tokenizer, conversation, tools=request.get("tools"), **options)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_written_as_vllm_writes_it(model_config, tokenizer, tmp_path, template, request_, monkeypatch):
    """What is calibrated on is what is served, whatever the template goes through."""
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[template])
    (file := tmp_path / "p.jsonl").write_text(json.dumps(request_ | {"label": "harmless"}))
    (prompt,) = load_prompts(file).prompts
    written = ChatTemplate(tokenizer).write(prompt.messages, "p.jsonl:1", prompt.tools, prompt.template_options)
    assert written == of_vllm(model_config, tokenizer, request_)


def test_a_template_that_refuses_is_named(tokenizer, monkeypatch, tmp_path):
    """The error names the line of the prompt, and gives the template's own reason."""
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    (file := tmp_path / "p.jsonl").write_text(json.dumps({"messages": [USER], "label": "harmless"}))
    (prompt,) = load_prompts(file).prompts
    with pytest.raises(PromptError, match=r"p\.jsonl:1: .*roles must alternate"):
        ChatTemplate(tokenizer).write(prompt.messages, "p.jsonl:1")
