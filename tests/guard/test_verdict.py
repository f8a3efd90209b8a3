"""Verdicts cross process boundaries as plain msgpack and come back equal."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.verdict import Action, Mode, Unscored, Verdict

verdicts = st.builds(
    Verdict,
    decision=st.sampled_from(Action),
    action=st.sampled_from(Action),
    mode=st.sampled_from(Mode),
    scores=st.dictionaries(st.text(max_size=20), st.floats(allow_nan=False)),
    policy=st.text(),
    event_id=st.text(),
    rule=st.none() | st.text(),
    unscored=st.none() | st.sampled_from(Unscored),
    constraint=st.none() | st.text(),
    decision_seconds=st.floats(0, 1),
)


@given(verdict=verdicts)
def test_round_trip_through_msgpack(verdict):
    """VLLM sends a verdict from its engine to its API server by msgspec: equal on the far side, with its
    enumerations.
    """
    back = Verdict.from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(verdict.to_wire())))
    assert back == verdict
    assert isinstance(back.decision, Action)
    assert isinstance(back.mode, Mode)
    assert back.unscored is None or isinstance(back.unscored, Unscored)


@given(verdict=verdicts)
def test_wire_holds_plain_types_only(verdict):
    """Nothing on the wire needs our classes to be read."""
    plain = {str, float, int, bool, type(None), dict}
    assert {type(value) for value in verdict.to_wire().values()} <= plain


def test_severity_is_the_order_of_the_glossary():
    """Allow < flag < steer < block."""
    assert sorted(Action, key=lambda action: action.severity) == [
        Action.ALLOW,
        Action.FLAG,
        Action.STEER,
        Action.BLOCK,
    ]


@given(verdict=verdicts, constraint=st.text(min_size=1))
def test_a_steer_that_a_request_undoes_becomes_a_block(verdict, constraint):
    """It says so and why, keeps everything else, and in shadow mode nothing is done."""
    blocked = verdict.blocked_for(constraint)
    assert (blocked.decision, blocked.constraint) == (Action.BLOCK, constraint)
    assert blocked.action is (Action.BLOCK if verdict.mode is Mode.ENFORCE else Action.ALLOW)
    told = {"decision", "action", "constraint"}
    kept = [{name: value for name, value in each.to_wire().items() if name not in told} for each in (verdict, blocked)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("key", ["decision", "unscored"])
def test_a_wire_from_another_version_is_not_guessed_at(key):
    """An unknown value raises; nothing defaults to allow."""
    wire = Verdict(Action.BLOCK, Action.BLOCK, Mode.ENFORCE, {}, "p@1", "fge_1").to_wire()
    with pytest.raises(ValueError, match="banish"):
        Verdict.from_wire({**wire, key: "banish"})
