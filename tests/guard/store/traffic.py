"""Decisions as a server makes them, and the policy they were made by."""

import time
from datetime import UTC, datetime, timedelta

from guard.journal import Decision
from guard.policy import Policy
from guard.store.stored import StoredDecision
from guard.verdict import Action, Mode, Verdict

RULE = {"name": "r", "action": "flag", "when": {"harm": {"above": 0}}}
POLICY = Policy.model_validate({"name": "p", "version": "1", "rules": [RULE]})
START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def decision(event_id, action=Action.FLAG, scores=(("harm", 1.0),), **about):
    """A decision of the journal."""
    verdict = Verdict(action, action, Mode.ENFORCE, dict(scores), POLICY.label, event_id, policy_digest=POLICY.digest)
    return Decision(verdict, POLICY, **about)


def kept(number, *, action=Action.ALLOW, scores=None, **about):
    """A decision of the store: the one with this number, made so many seconds after the start."""
    about = {"at": START + timedelta(seconds=number), "policy": "p@1", "mode": Mode.ENFORCE} | about
    found = {"harm": float(number)} if scores is None else scores
    return StoredDecision(f"fge_{number}", action, action, scores=found, **about)


def wait_until(holds, seconds=30.0):
    """Wait until something holds, or fail after a time that no machine needs."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came about"
        time.sleep(0.01)
