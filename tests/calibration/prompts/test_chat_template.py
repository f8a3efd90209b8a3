"""Conversations are written as vLLM writes them: every trick of templates, with vLLM's own functions beside ours."""

import json

import pytest
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import _detect_content_format, safe_apply_chat_template

from calibration.prompts.chat_template import ChatTemplate
from calibration.prompts.prompt_file import load_prompts
from probes.errors import PromptError
from tests.conversations import REQUESTS, TEMPLATES, USER


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
    tools = [ChatCompletionToolsParam(**tool).model_dump() for tool in request.get("tools", [])] or None
    return safe_apply_chat_template(model_config, tokenizer, conversation, tools=tools, **options)


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
