"""What the guard reads in a body is what vLLM reads in it, however it is written and however long it is."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api import request_fields
from serving.api.history import readable
from serving.api.request_fields import UnreadableBody, fields_of

NAMES = ("moderation", "use_beam_search", "stream_options", "echo")
MIB = 1 << 20

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "a"]), inner, max_size=3),
    max_leaves=8,
)
pairs = st.lists(st.tuples(st.sampled_from([*NAMES, "model", "messages"]), values), max_size=8)


def written(pairs, escape, spaces):
    """A JSON object of pairs, whose keys may come twice and be spelt with escapes."""

    def key(name):
        letters = [f"\\u{ord(letter):04x}" if at % escape == 0 else letter for at, letter in enumerate(name)]
        return f'"{"".join(letters)}"'

    inside = f",{spaces}".join(f"{key(name)}{spaces}:{json.dumps(value)}" for name, value in pairs)
    return f"{spaces}{{{inside}{spaces}}}{spaces}"


@given(
    pairs=pairs,
    escape=st.integers(1, 9),
    spaces=st.sampled_from(["", " ", "\n\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_the_guard_reads_what_vllm_reads(pairs, escape, spaces, encoding):
    """Doubled keys, escapes in them, NaN, half surrogate pairs, spaces, encodings: as `json.loads` has it."""
    body = written(pairs, escape, spaces).encode(encoding, "surrogatepass")
    theirs = json.loads(body)
    ours = fields_of(body, is_json=True)
    assert repr(ours) == repr({name: theirs[name] for name in NAMES if name in theirs})


@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_what_is_no_object_says_nothing(body):
    """VLLM answers it."""
    try:
        theirs = json.loads(body)
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict):
        assert fields_of(body, is_json=True) == {}


ODD = {
    "NaN": b'{"moderation":{"mode":"block"},"x":NaN,"y":"%s"}',
    "half a surrogate pair": b'{"moderation":{"mode":"block"},"x":"\\ud800","y":"%s"}',
    "no end": b'{"moderation":{"mode":"block"},"y":"%s"',
}


@pytest.mark.parametrize("odd", ODD)
def test_a_long_body_is_read_by_the_letter_or_not_at_all(odd):
    """Its wish is not ignored: the client is told.

    Where the body does not say that it is JSON, vLLM takes none from it.
    """
    body = ODD[odd] % (b"x" * MIB)
    with pytest.raises(UnreadableBody):
        fields_of(body, is_json=True)
    assert fields_of(body, is_json=False) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_field_that_is_too_long_is_none_that_anyone_means(name):
    """It is read as a text that says so: no moderation, and no options of a stream."""
    body = json.dumps({name: ["x"] * MIB}).encode()
    assert fields_of(body, is_json=True) == {name: "too long"}


LONG = {
    "brackets": b'{"moderation":{"mode":"block"},"x":[' + b",".join([b"[]"] * 5_000_000) + b"]}",
    "brackets in a field": b'{"echo":[' + b",".join([b"[]"] * 5_000_000) + b"]}",
    "depth": b'{"x":' + b"[" * 15_000_000,
    "text": b'{"moderation":{"mode":"block"},"x":"' + b"moderation, echo, refusal \\n " * 500_000 + b'"}',
    "keys": b"{" + b",".join(b'"k%d":0' % number for number in range(1_000_000)) + b"}",
    "items of a history": b'{"input":[' + b",".join([b'"refusal"'] * 1_000_000) + b"]}",
    "an item of brackets": b'{"input":["refusal",[' + b",".join([b"[]"] * 5_000_000) + b"]]}",
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_body_does_not_hold_the_others_up(kind):
    """15 MB are looked through in a fraction of the time that `json.loads` takes for the brackets: 2 to 5 s."""
    began = time.process_time()
    try:
        fields_of(LONG[kind], is_json=True)
    except UnreadableBody:
        assert kind == "depth"
    readable(LONG[kind])
    assert time.process_time() - began < 1.5


def test_a_short_body_is_cheap():
    """Some microseconds: it is read for every request."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello " * 100}]}).encode()
    began = time.process_time()
    for _ in range(1000):
        fields_of(body, is_json=True)
    assert time.process_time() - began < 0.2


def test_the_table_of_fields_is_the_one_that_is_tested():
    """A field that is read and not listed above would not be compared with vLLM's reading."""
    assert request_fields._Fields.__struct_fields__ == NAMES
