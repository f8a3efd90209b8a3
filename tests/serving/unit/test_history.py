"""What clients send back of earlier answers reaches vLLM in a form that it can read."""

import json

import pytest

from serving.api.history import readable

REFUSAL = {"type": "refusal", "refusal": "No."}
TEXT = {"type": "output_text", "text": "No.", "annotations": []}


def read(content, **written):
    """What vLLM reads, or None where the body is left alone."""
    changed = readable(json.dumps(content, **written).encode())
    return None if changed is None else json.loads(changed)


@pytest.mark.parametrize("written", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_a_refusal_becomes_text(written):
    """In its place, and nothing else changes."""
    message = {"id": "m", "type": "message", "role": "assistant", "status": "incomplete"}
    content = {
        "model": "m",
        "input": [{"role": "user", "content": "ä"}, message | {"content": [TEXT, REFUSAL]}],
        "n": 1,
    }
    changed = content | {"input": [content["input"][0], message | {"content": [TEXT, TEXT]}]}
    assert read(content, **written) == changed


def test_what_has_no_refusal_is_left_alone():
    """Whatever its form: vLLM says what it thinks of it."""
    user = {"role": "user", "content": [REFUSAL]}
    odd = {"role": "assistant", "content": [{"type": "refusal", "refusal": 5}, "x", None]}
    for given in ("refusal", None, 5, [], [user], [odd], ["x", None, {"role": "assistant", "content": "refusal"}]):
        assert read({"input": given, "x": "refusal"}) is None
    assert read({}) is None
    for body in (
        b"",
        b"refusal",
        b'{"input": ["\xffrefusal"]}',
        b'["refusal"]',
        b'{"refusal": NaN}',
        b'{"refusal":' + b"[" * 100_000,
    ):
        assert readable(body) is None


def test_an_item_that_is_no_message_of_ours_is_left_alone():
    """One this long is no refusal of the guard's: its messages have 2,000 characters at most."""
    long = {"role": "assistant", "content": [REFUSAL, TEXT | {"text": "x" * 100_000}]}
    assert read({"input": [long]}) is None
    short = {"role": "assistant", "content": [REFUSAL]}
    assert read({"input": [long, short]})["input"] == [long, short | {"content": [TEXT]}]
    for many in (20_000, 9_000):
        assert read({"input": [short | {"id": "x" * 200}] * many}) is None
