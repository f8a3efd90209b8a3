"""A server makes the token ids of a conversation that calibration makes of it, for every trick of templates."""

import json

import httpx
import pytest
from transformers import AutoTokenizer

from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts
from tests.conversations import REQUESTS, TEMPLATES
from tests.serving.lab import MODEL

MOST_TOKENS = 1024


@pytest.fixture(scope="module")
def tokenizer():
    """The lab model's, for this module alone: its chat template is replaced."""
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def server(start):
    """A server without a guard, as only such a one lets a client bring a chat template."""
    with start(None, "--trust-request-chat-template") as server:
        yield server


@pytest.mark.engine
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_log_has_the_token_ids_of_the_request(server, tokenizer, tmp_path, template, request_, monkeypatch):
    """A line of a prompt file is encoded to what `/tokenize` answers to the same conversation."""
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[template])
    (file := tmp_path / "log.jsonl").write_text(json.dumps(request_ | {"label": "harmless"}))
    answer = httpx.post(f"{server.url}/tokenize", json=request_ | {"chat_template": TEMPLATES[template]}, timeout=60)
    assert answer.status_code == 200, answer.text
    [offline] = encode_prompts(tokenizer, load_prompts(file), MOST_TOKENS).token_ids
    assert list(offline) == answer.json()["tokens"]
