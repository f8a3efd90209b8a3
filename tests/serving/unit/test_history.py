"""What clients send back of earlier answers reaches vLLM in a form that it can read."""

from serving.history import readable

REFUSAL = {"type": "refusal", "refusal": "No."}
TEXT = {"type": "output_text", "text": "No.", "annotations": []}


def test_a_refusal_becomes_text():
    """In its place, and nothing else changes."""
    message = {"id": "m", "type": "message", "role": "assistant", "status": "incomplete"}
    content = {"model": "m", "input": [{"role": "user", "content": "a"}, message | {"content": [TEXT, REFUSAL]}]}
    assert readable(content) == content | {"input": [content["input"][0], message | {"content": [TEXT, TEXT]}]}


def test_what_has_no_refusal_is_left_alone():
    """Whatever its form: vLLM says what it thinks of it."""
    user = {"role": "user", "content": [REFUSAL]}
    odd = {"role": "assistant", "content": [{"type": "refusal", "refusal": 5}, "x", None]}
    for given in ("hello", None, 5, [], [user], [odd], ["x", None, {"role": "assistant", "content": "refusal"}]):
        assert readable({"input": given}) is None
    assert readable({}) is None
