"""An exchange knows when a request is decided, and sums up its prompts on the careful side."""

import numpy as np
import pytest

from guard.decide import bind
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.verdict import Action, Mode, Unscored, Verdict
from serving.api.exchange import Exchange, Prompt

RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 2}}}
POLICY = Policy.model_validate({"name": "p", "version": "1", "rules": [RULE]})
POLICIES = PolicySet(bind(POLICY, ["harm"], np.zeros((0, 1), dtype=np.float32)))


def verdict(action, unscored=None):
    """A verdict that acted."""
    return Verdict(action, action, Mode.ENFORCE, {}, "p@1", f"fge_{action}", unscored=unscored)


def prompt(action=None, n=1, blocked=(), passed=False, unscored=None):
    """One prompt of a request."""
    found = verdict(action, unscored) if action else None
    return Prompt("id", n, POLICIES, verdict=found, blocked=set(blocked), passed=passed)


def exchange(*prompts):
    """A request of several prompts."""
    return Exchange(POLICIES, prompts=list(prompts))


def test_nothing_is_decided_before_vllm_was_asked():
    """No prompts: neither decided nor blocked, so nothing leaves early."""
    assert not exchange().decided
    assert not exchange().blocked
    assert exchange().verdict is None


def test_decided_when_every_prompt_is():
    """One prompt of two is not enough; one passed completion of n is, and so are n blocked ones."""
    passed, waiting = prompt(Action.ALLOW, passed=True), prompt()
    assert not exchange(passed, waiting).decided
    assert exchange(passed, passed).decided
    assert not exchange(prompt(Action.BLOCK, n=2, blocked=[0])).decided
    assert exchange(prompt(Action.BLOCK, n=2, blocked=[0, 1])).decided
    assert exchange(prompt(Action.BLOCK, n=2, blocked=[0], passed=True)).decided


def test_blocked_means_all_of_it():
    """A request is blocked when nothing of it got through."""
    gone, passed = prompt(Action.BLOCK, blocked=[0]), prompt(Action.ALLOW, passed=True)
    assert exchange(gone, gone).blocked
    assert not exchange(gone, passed).blocked
    assert exchange(gone, passed).any_blocked
    assert not exchange(passed).any_blocked


@pytest.mark.parametrize(
    ("prompts", "decision"),
    [
        ([], "unscored"),
        ([prompt(Action.ALLOW)], "allow"),
        ([prompt(Action.ALLOW), prompt(Action.FLAG)], "flag"),
        ([prompt(Action.STEER), prompt(Action.FLAG)], "steer"),
        ([prompt(Action.FLAG), prompt(Action.BLOCK)], "block"),
        ([prompt(Action.ALLOW, unscored=Unscored.MISSING)], "unscored"),
        ([prompt(Action.FLAG, unscored=Unscored.MISSING)], "unscored"),
        ([prompt(Action.BLOCK, unscored=Unscored.MISSING)], "block"),
        ([prompt(Action.ALLOW, unscored=Unscored.MISSING), prompt(Action.ALLOW)], "unscored"),
    ],
)
def test_decision_header(prompts, decision):
    """The most severe action names the request; a prompt without a score is said so unless it was blocked."""
    assert exchange(*prompts).decision == decision


@pytest.mark.parametrize(
    "prompts",
    [
        [prompt(Action.ALLOW), prompt(Action.ALLOW, unscored=Unscored.MISSING)],
        [prompt(Action.ALLOW), prompt(None, passed=True)],
    ],
)
def test_one_prompt_without_a_score_is_not_hidden_by_another(prompts):
    """Unscored is never silently allow, in whatever order the prompts came."""
    assert exchange(*prompts).decision == "unscored"
