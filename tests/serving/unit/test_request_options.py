"""What a caller may ask is heard however it is written, and never loosens anything without the operator's word."""

import contextlib
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.policy import Caller, Policy
from serving.api.request_fields import fields_of
from serving.api.request_options import (
    BadModeration,
    Moderation,
    UnguardedRequest,
    asked,
    identify,
    read_moderation,
    require_guarded,
    wants_usage,
)

RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 1}}}


def content_of(body):
    """What a body of JSON says to the guard."""
    return fields_of(body, is_json=True)


def caller(key="key-of-ours", **grants):
    """A caller whom the policy names."""
    return Caller(name="team", key_sha256=hashlib.sha256(key.encode()).hexdigest(), **grants)


def policy(*callers):
    """A policy with callers."""
    return Policy.model_validate(
        {"name": "p", "version": "1", "rules": [RULE], "callers": [c.model_dump() for c in callers]}
    )


@pytest.mark.parametrize(
    "moderation",
    [
        {"mode": "block"},
        {"policy": {"input": {"mode": "block"}}},
        {"mode": "score", "policy": {"input": {"mode": "block"}}},
        {"model": "omni", "mode": "block", "policy": {"output": {"mode": "score"}}, "later": [1]},
    ],
)
def test_block_is_heard_at_either_place(moderation):
    """The input's own mode wins over the one at the top; unknown keys of newer specifications are left alone."""
    assert read_moderation(content_of(json.dumps({"moderation": moderation}).encode())).input_mode == "block"


@pytest.mark.parametrize(
    "moderation",
    [
        {},
        {"mode": "score"},
        {"mode": None},
        {"policy": {}},
        {"policy": None},
        {"policy": {"input": None}},
        {"policy": {"output": {"mode": "block"}}},
    ],
)
def test_score_is_the_default(moderation):
    """Asking for moderation without a mode asks for the score; what OpenAI's types let be null may be null."""
    assert read_moderation(content_of(json.dumps({"moderation": moderation}).encode())).input_mode == "score"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'"moderation"',
        b'{"moderation": null}',
        b'{"messages": [{"role": "user", "content": "\\"moderation\\": {}"}]}',
        b'{"metadata": {"moderation": {"mode": "nonsense"}}}',
        b'{"moderation": {"mode": "block"}',
        b"\xff\xfe",
    ],
)
def test_requests_without_moderation(body):
    """Absent, null, nested, quoted in a prompt, or in a body that is no JSON: nothing is asked, and nothing fails."""
    assert read_moderation(content_of(body)) is None


@pytest.mark.parametrize(
    ("moderation", "where"),
    [
        ("block", "moderation"),
        ([], "moderation"),
        (True, "moderation"),
        ({"mode": "BLOCK"}, "moderation.mode"),
        ({"mode": 1}, "moderation.mode"),
        ({"policy": {"input": "block"}}, "moderation.policy.input"),
        ({"policy": {"input": {"mode": "off"}}}, "moderation.policy.input.mode"),
    ],
)
def test_malformed_moderation_is_refused(moderation, where):
    """A wish that cannot be understood is an error that names the key, not a wish ignored."""
    with pytest.raises(BadModeration) as caught:
        read_moderation(content_of(json.dumps({"moderation": moderation}).encode()))
    assert str(caught.value).startswith(f"{where}: ")


@pytest.mark.parametrize(
    "body",
    [
        rb'{"\u006doderation": {"mode": "block"}}',
        rb'{"moderatio\u006E": {"mode": "bl\u006fck"}}',
        '{"moderation": {"mode": "block"}}'.encode("utf-16"),
        '{"moderation": {"mode": "block"}}'.encode("utf-16-le"),
        '{"moderation": {"mode": "block"}}'.encode("utf-8-sig"),
    ],
    ids=["escaped key", "escaped key and value", "UTF-16", "UTF-16 without a mark", "UTF-8 with a mark"],
)
def test_other_spellings_of_the_same_json(body):
    """The web framework reads escapes and the other Unicode encodings, so the guard must: a wish to tighten is not
    lost.
    """
    assert json.loads(body) == {"moderation": {"mode": "block"}}
    assert read_moderation(content_of(body)).input_mode == "block"


@given(body=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: f'{{"moderation": {text}}}'.encode()))
def test_no_body_breaks_the_reading(body):
    """Whatever bytes arrive, the answer is a moderation, none, or an error for the client."""
    with contextlib.suppress(BadModeration):
        assert isinstance(read_moderation(content_of(body)), Moderation | None)


def test_a_body_of_brackets():
    """Nesting beyond what the parser takes is malformed JSON like any other."""
    assert read_moderation(content_of(b'{"moderation": ' + b"[" * 200_000)) is None


def test_callers_are_known_by_their_token():
    """Case of the header and of the scheme do not matter; the key does."""
    known, other = caller(may_shadow=True), caller("other").model_copy(update={"name": "other"})
    for name, value in ((b"authorization", b"Bearer key-of-ours"), (b"Authorization", b"bearer  key-of-ours ")):
        assert identify([(b"host", b"x"), (name, value)], policy(other, known)) == known


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Basic key-of-ours")],
        [(b"authorization", b"key-of-ours")],
        [(b"x-authorization", b"Bearer key-of-ours")],
        [(b"authorization", b"Bearer " + hashlib.sha256(b"key-of-ours").hexdigest().encode())],
        [(b"authorization", b"Bearer \xff\xfe")],
    ],
)
def test_everyone_else_is_the_public(headers):
    """A wrong key, another scheme, or the digest itself in place of the key opens nothing."""
    assert identify(headers, policy(caller())) is None


def test_no_callers_no_digest():
    """Without callers in the policy nobody is known."""
    assert identify([(b"authorization", b"Bearer key-of-ours")], policy()) is None


def test_what_goes_to_the_gate():
    """Anyone may tighten; only a caller who was granted it may ask for shadow, and sends the digest that proves it."""
    block, score = Moderation(mode="block"), Moderation(mode="score")
    granted, other = caller(may_shadow=True), caller(sees_scores=True)
    assert asked(None, granted) == {}
    assert asked(block, None) == asked(block, granted) == {"tighten": True}
    assert asked(score, None) == asked(score, other) == {}
    assert asked(score, granted) == {"shadow": True, "caller": granted.key_sha256}


@pytest.mark.parametrize(
    ("moderation", "shadowed"),
    [
        ({}, True),
        ({"variant": "medical"}, False),
        ({"variant": "medical", "mode": "score"}, True),
        ({"variant": "medical", "policy": {"input": {"mode": "score"}}}, True),
    ],
)
def test_who_asks_for_a_variant_alone_gets_its_actions(moderation, shadowed):
    """A caller who may shadow, too, is shadowed only where it asks for scores."""
    granted = caller(may_shadow=True, may_choose=("medical",))
    assert bool(asked(Moderation.model_validate(moderation), granted)) is shadowed


@pytest.mark.parametrize("body", [b'{"use_beam_search": true}', b'{"use_be\\u0061m_search": true, "n": 2}'])
def test_beam_search_is_refused_however_it_is_spelt(body):
    """Also with escapes in its name."""
    with pytest.raises(UnguardedRequest, match="Beam search"):
        require_guarded(content_of(body))


@pytest.mark.parametrize(
    "body", [b'{"use_beam_search": false}', b'{"prompt": "use_beam_search"}', b'{"use_beam_search":', b"[]"]
)
def test_what_is_no_beam_search_passes(body):
    """Talk of it, its absence, and what is not JSON, which vLLM answers itself."""
    require_guarded(content_of(body))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({}, False),
        (None, False),
        ("x", False),
        ([1], False),
    ],
)
def test_usage_is_asked_for_in_the_stream_options(options, expected):
    """Where a route does not know them, vLLM takes any value: what is no object asks for nothing."""
    assert wants_usage(content_of(json.dumps({"stream_options": options}).encode())) is expected
