"""Recorded decisions judged by other rules get what a server would decide on the same scores."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.decide import bind
from guard.policy import Policy
from guard.tuning.judged import LeftOut, Rules, judge
from probes.errors import PolicyError
from tests.guard.tuning.recorded import in_memory

PROBES = ("harm", "refusal", "novelty")
NUMBERS = st.sampled_from([-2.0, -0.5, 0.0, 0.1, 0.3, 1.0, 2.5])
SCORES = st.one_of(NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(-3, 3))


@st.composite
def policies(draw):
    """Policies of bands, several conditions, and combinations."""
    combine = {
        f"mix{n}": draw(st.dictionaries(st.sampled_from(PROBES), NUMBERS, min_size=1))
        for n in range(draw(st.integers(0, 2)))
    }
    rules = []
    for number in range(draw(st.integers(1, 4))):
        when = {}
        for name in draw(st.sets(st.sampled_from([*PROBES, *combine]), min_size=1, max_size=3)):
            low, high = sorted(draw(st.tuples(NUMBERS, NUMBERS)))
            ends = draw(st.sampled_from(["above", "below", "both"] if low < high else ["above", "below"]))
            when[name] = {end: value for end, value in (("above", low), ("below", high)) if ends in (end, "both")}
        rules.append({"name": f"r{number}", "action": draw(st.sampled_from(["flag", "steer", "block"])), "when": when})
    return Policy.model_validate(
        {"name": "p", "version": "1", "rules": rules, "combine": combine, "steering": {"vector": "refusal"}}
    )


@given(policies(), st.lists(st.tuples(SCORES, SCORES, SCORES), min_size=1, max_size=20))
def test_agrees_with_the_server_decision_by_decision(policy, scores):
    """The same action and the same rule; what a server could not score is left out and counted."""
    bound = bind(policy, PROBES, np.zeros((0, 3), np.float32), steering=["refusal"])
    columns = dict(zip(PROBES, np.array(scores, dtype=np.float64).T, strict=True))
    found = judge(in_memory(columns), Rules.of(bound))
    for place, each in enumerate(scores):
        verdict = bound.judge(each)
        assert found.counted[place] == (verdict.unscored is None)
        if verdict.unscored is None:
            assert (found.actions[place], found.deciding[place]) == (verdict.decision, verdict.rule)
    assert sum(found.left_out.values()) == np.count_nonzero(~found.counted)


@pytest.fixture
def rules(policy):
    """A rule that blocks and one that flags below it."""
    made = policy(("sure", "block", {"harm": {"above": 2}}), ("doubt", "flag", {"harm": {"above": 1}}))
    return Rules.of(bind(made, ["harm", "refusal"], np.zeros((0, 2), np.float32)))


def test_what_cannot_be_judged_is_counted_by_its_reason(rules):
    """Answers, decisions without scores, those that lack a probe, and infinite scores; each for one reason."""
    nan = np.nan
    found = judge(
        in_memory(
            {"harm": [3, 3, nan, 3, np.inf, 1.5, nan], "refusal": [0, 0, nan, nan, 0, 0, nan], "own": [nan] * 6 + [1]},
            judged=["prompt", "answer", *["prompt"] * 5],
        ),
        rules,
    )
    assert found.left_out == {
        LeftOut.ANSWER: 1, LeftOut.UNSCORED: 1, LeftOut.OTHER_SCORES: 2, LeftOut.NOT_FINITE: 1,
    }  # fmt: skip
    assert found.actions[found.counted].tolist() == ["block", "flag"]


def test_a_probe_that_no_decision_has(rules):
    """Nothing is judged, and all of it is said."""
    found = judge(in_memory({"other": [1.0, 2.0]}), rules)
    assert found.left_out == {LeftOut.OTHER_SCORES: 2}


def test_one_threshold_is_moved(rules):
    """The rule's other conditions and the other rules stay; one that is not there is named."""
    found = judge(in_memory({"harm": [1.2, 1.8, 3], "refusal": [0] * 3}), rules.moved("doubt", "harm", 1.5))
    assert found.deciding.tolist() == [None, "doubt", "sure"]
    with pytest.raises(PolicyError, match="no rule 'doubt' has a condition on 'refusal'"):
        rules.moved("doubt", "refusal", 0.0)
