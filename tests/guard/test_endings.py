"""Verdicts turn by turn, and on prompts that do not end as the chat template does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.decide import bind
from guard.endings import OtherEndings
from guard.policy import Policy
from guard.verdict import Action, Unscored
from probes.template import Ending

PROBES = ("last", "all")
BENIGN = np.linspace(-1, 1, 600, dtype=np.float32)[:, None].repeat(2, axis=1)
"""A threshold for 1 % is near 1; of open turns, whose scores are larger, near 3."""
OTHERS = OtherEndings(
    benign_scores={Ending.PREFILL: BENIGN * 3, Ending.OPEN: BENIGN * 3},
    certified={Ending.PREFILL: PROBES, Ending.OPEN: ("all",)},
    read_open=("all",),
)
PROMISE = {"above": {"target_fpr": 0.01}}
QUIET = (-1.0, -1.0)


def bound(policy, *rules, others=OTHERS, **settings):
    made = policy(*rules).model_copy(update=settings)
    return bind(made, PROBES, BENIGN, steering=["refusal"], others=others)


@pytest.fixture
def blocks_by_all(policy):
    """Blocks by a probe that reads open turns, and flags by one that does not."""
    return bound(policy, ("all", "block", {"all": PROMISE}), ("last", "flag", {"last": PROMISE}))


@given(scores=st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=6))
def test_a_conversation_is_judged_by_its_worst_turn(scores):
    """No turn that stands beside a harmful one makes its verdict milder, wherever it stands."""
    rules = [("all", "block", {"all": PROMISE}), ("last", "flag", {"last": PROMISE})]
    policy = Policy(
        name="p", version="1", rules=[{"name": n, "action": a, "when": w} for n, a, w in rules]
    )  # a fixture would be shared between examples
    made = bind(policy, PROBES, BENIGN, others=OTHERS)
    alone = max(made.judge(each).decision.severity for each in scores)
    assert made.judge_turns(scores).decision.severity == alone


def test_the_scores_of_a_verdict_are_those_of_the_turn_that_called_for_it(blocks_by_all):
    """Of the last closed turn where none did."""
    assert blocks_by_all.judge_turns([(0.0, 5.0), QUIET]).scores == {"last": 0.0, "all": 5.0}
    assert blocks_by_all.judge_turns([QUIET, (0.5, 0.5)]).scores == {"last": 0.5, "all": 0.5}
    assert blocks_by_all.judge_turns([(0.5, 0.5), QUIET], Ending.PREFILL).scores == {"last": 0.5, "all": 0.5}


@pytest.mark.parametrize(
    ("turns", "ending", "decision"),
    [
        ([(0.0, 2.0)], Ending.TEMPLATE, Action.BLOCK),
        ([(0.0, 2.0), QUIET], Ending.PREFILL, Action.BLOCK),  # the user's turn is closed: judged as ever
        ([QUIET, (0.0, 2.0)], Ending.PREFILL, Action.ALLOW),  # an open turn has a threshold of its own
        ([QUIET, (0.0, 4.0)], Ending.PREFILL, Action.BLOCK),
        ([QUIET, (4.0, 0.0)], Ending.PREFILL, Action.ALLOW),  # a probe of the last token reads no open turn
        ([(4.0, 0.0), QUIET], Ending.PREFILL, Action.FLAG),
    ],
)
def test_each_turn_is_judged_by_the_thresholds_of_its_kind(blocks_by_all, turns, ending, decision):
    """Closed ones by those of plain chat; one that is left open by those certified on such."""
    verdict = blocks_by_all.judge_turns(turns, ending)
    assert (verdict.decision, verdict.unscored) == (decision, None)


@pytest.mark.parametrize(
    ("off_template", "action", "decision"),
    [
        ("block", "block", Action.BLOCK),
        ("flag", "block", Action.FLAG),
        ("allow", "block", Action.ALLOW),
        ("block", "flag", Action.FLAG),  # a rule that could only have flagged
        ("allow", "flag", Action.ALLOW),
    ],
)
def test_a_rule_that_has_no_say_counts_as_fired_up_to_the_policy_s_limit(policy, off_template, action, decision):
    """And the verdict says why: off the template, without scores."""
    made = bound(policy, ("last", action, {"last": PROMISE}), off_template=Action(off_template))
    verdict = made.judge_turns([QUIET], Ending.OPEN)
    assert (verdict.decision, verdict.unscored, verdict.scores) == (decision, Unscored.OFF_TEMPLATE, {})


@pytest.mark.parametrize("ending", Ending)
@pytest.mark.parametrize(
    ("on_media", "action", "decision"),
    [
        ("block", "block", Action.BLOCK),
        ("flag", "block", Action.FLAG),
        ("allow", "block", Action.ALLOW),
        ("block", "flag", Action.FLAG),
        ("allow", "flag", Action.ALLOW),
    ],
)
def test_media_count_as_the_severest_rule_up_to_the_policy_s_limit(policy, ending, on_media, action, decision):
    """No probe is certified for what an image or a recording says, however the prompt ends."""
    made = bound(policy, ("all", action, {"all": PROMISE}), off_template=Action.ALLOW, on_media=Action(on_media))
    verdict = made.judge_turns([QUIET, QUIET], ending, has_media=True)
    assert (verdict.decision, verdict.rule, verdict.scores) == (decision, None, {})
    assert verdict.unscored in (Unscored.MEDIA, Unscored.OFF_TEMPLATE)
    assert verdict.unscored is Unscored.MEDIA or ending is not Ending.TEMPLATE


def test_the_text_around_media_is_judged_as_ever(policy):
    """What fires on it stands, with its scores; a policy that would let the media pass loses nothing of that."""
    made = bound(policy, ("all", "block", {"all": PROMISE}), on_media=Action.ALLOW)
    verdict = made.judge_turns([(0.0, 9.0), QUIET], has_media=True)
    assert (verdict.decision, verdict.rule, verdict.unscored) == (Action.BLOCK, "all", None)


def test_a_rule_that_is_certified_decides_beside_one_that_is_not(policy):
    """What it finds stands, with its scores, where it calls for as much as the other could."""
    made = bound(policy, ("all", "block", {"all": PROMISE}), ("last", "block", {"last": PROMISE}))
    verdict = made.judge_turns([(0.0, 4.0)], Ending.OPEN)
    assert (verdict.decision, verdict.rule, verdict.unscored) == (Action.BLOCK, "all", None)
    assert made.judge_turns([QUIET], Ending.OPEN).unscored is Unscored.OFF_TEMPLATE
    assert made.judge_turns([(9.0, -1.0), QUIET], Ending.OPEN).rule == "last"


def test_an_ending_that_nothing_is_known_of_is_off_the_template(policy):
    """An artifact without scores of such prompts certifies no rule for them."""
    made = bound(policy, ("all", "block", {"all": PROMISE}), others=OtherEndings())
    assert made.judge_turns([(9.0, 9.0)], Ending.OPEN).unscored is Unscored.OFF_TEMPLATE
    assert made.judge_turns([QUIET], Ending.PREFILL).decision is Action.BLOCK


def test_too_few_harmless_prompts_certify_no_rule(policy):
    """1 % needs 299: with fewer of an ending, a rule has no say on it, and plain chat is judged as ever."""
    few = OtherEndings({Ending.OPEN: BENIGN[:100]}, {Ending.OPEN: PROBES}, PROBES)
    made = bound(policy, ("all", "block", {"all": PROMISE}), others=few)
    assert made.judge_turns([QUIET], Ending.OPEN).unscored is Unscored.OFF_TEMPLATE
    assert made.judge_turns([(0.0, 2.0)]).decision is Action.BLOCK


def test_a_client_may_ask_for_less(blocks_by_all):
    """Tightened, a flag is a block on any turn and off the template."""
    assert blocks_by_all.judge_turns([(4.0, 0.0), QUIET], tighten=True).decision is Action.BLOCK


def test_a_turn_without_a_score_leaves_the_prompt_without_one(blocks_by_all):
    """Whichever turn it is."""
    for place in range(3):
        turns = [QUIET] * 3
        turns[place] = (0.0, float("nan"))
        assert blocks_by_all.judge_turns(turns).unscored is Unscored.NOT_FINITE
