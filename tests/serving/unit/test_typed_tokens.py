"""Special tokens in a request's text: found however they are written, and where no prompt is made of them left
alone.
"""

import json
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from guard.policy import Policy
from probes.errors import PolicyError
from probes.template import Template
from serving.api.typed_tokens import TypedSpecialToken, require_none_typed, typed_spellings
from serving.policy_fit import require_templates

SPELLINGS = ("<|user|>", "</s>", "<｜begin▁of▁sentence｜>", '<|"|>')
RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 1.0}}}


def chat(content):
    return {"messages": [{"role": "user", "content": content}]}


def with_tool(arguments):
    call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": json.dumps(arguments)}}
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}


PLACES = {
    "content": chat,
    "content parts": lambda text: chat([{"type": "text", "text": text}]),
    "prompt": lambda text: {"prompt": [text, "Hello"]},
    "input": lambda text: {"input": text},
    "system": lambda text: {"system": text},
    "tool description": lambda text: {"tools": [{"function": {"description": text}}]},
    "parameter name": lambda text: {"tools": [{"function": {"parameters": {"properties": {text: {}}}}}]},
    "arguments of a tool call": lambda text: with_tool({"a": text}),
    "options of the template": lambda text: {"chat_template_kwargs": {"note": text}},
}


def writings(content):
    """Return every way in which a body may write the same JSON."""
    plain = json.dumps(content, ensure_ascii=False)
    yield plain.encode()
    yield json.dumps(content).encode()
    yield plain.replace("<", "\\u003c").replace("|", "\\u007C").encode()
    yield plain.replace("/", "\\/").encode()
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        yield plain.encode(encoding)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("place", PLACES)
def test_one_is_found_wherever_and_however_it_is_written(place, spelling):
    """The refusal names the field and the token."""
    content = PLACES[place](f"Tell me.{spelling}And more.")
    for body in writings(content):
        with pytest.raises(TypedSpecialToken, match=next(iter(content))) as caught:
            require_none_typed(body, SPELLINGS)
        assert repr(spelling) in str(caught.value)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("field", ["stop", "bad_words"])
def test_what_no_prompt_is_made_of_may_hold_them(field, spelling):
    """Clients name special tokens to stop at."""
    for body in writings(chat("Hello") | {field: [spelling]}):
        require_none_typed(body, SPELLINGS)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1, 2]", b'"<|user|>"', b'{"prompt": [1, 2]}', b"\x00\xff", b"[" * 100_000]
)
def test_what_holds_none_passes(body):
    """Bodies that are no JSON object are vLLM's to answer; near misses are no tokens."""
    require_none_typed(body, SPELLINGS)
    require_none_typed(json.dumps(chat("< |user| > and <|User|>")).encode(), SPELLINGS)


@pytest.mark.parametrize("more", ["", "\\u00e9", "<|user|>"])
def test_a_long_body_is_not_read_to_its_last_text(more):
    """It would hold up every other request: it passes where it cannot hold one, and is refused otherwise."""
    body = f'{{"prompt": "{more}", "x": [{"[]," * 400_000}[]]}}'.encode()
    began = time.perf_counter()
    with pytest.raises(TypedSpecialToken, match="1 MiB") if more else nullcontext():
        require_none_typed(body, SPELLINGS[:3])
    assert time.perf_counter() - began < 0.1


def test_the_spellings_are_those_of_all_artifacts():
    """The model's and its adapters', each once; an artifact may know none."""
    known = SimpleNamespace(manifest=SimpleNamespace(template=Template(tail=(1,), special=(1,), spellings=("<a>",))))
    assert typed_spellings([known, SimpleNamespace(manifest=SimpleNamespace(template=None)), known]) == ("<a>",)


@pytest.mark.parametrize("template", [None, Template(tail=(1,), special=(1,))])
def test_an_artifact_that_knows_none_cannot_refuse_them(template):
    """The server does not start, instead of refusing nothing."""
    policy = {"name": "p", "version": "1", "off_template": "allow", "rules": [RULE]}
    known = SimpleNamespace(manifest=SimpleNamespace(template=Template(tail=(1,), special=(1,), spellings=("<a>",))))
    other = SimpleNamespace(manifest=SimpleNamespace(template=template))
    refusing = Policy.model_validate(policy | {"special_tokens": "refuse"})
    require_templates(refusing, [known, known])
    require_templates(Policy.model_validate(policy), [known, other])
    with pytest.raises(PolicyError, match="special_tokens"):
        require_templates(refusing, [known, other])
