"""Each verdict that the policy wants written down has one line, by which its event id can be found."""

import json
import logging

import numpy as np
import pytest

from guard.decide import bind
from guard.decision_log import LOGGER, DecisionLog
from guard.journal import Decision
from guard.policy import Policy
from guard.verdict import Unscored

RULE = {"name": "harmful", "action": "block", "category": "weapons", "when": {"harm": {"above": 2}}}


def bound(**settings):
    """A policy that blocks above 2, with this log."""
    policy = Policy.model_validate({"name": "p", "version": "1", "rules": [RULE], "decision_log": settings})
    return bind(policy, ["harm"], np.zeros((0, 1), dtype=np.float32))


@pytest.fixture
def lines():
    """What was written, as JSON."""
    found = []

    class Reader(logging.Handler):
        def emit(self, record):
            found.append(json.loads(record.getMessage()))

    reader, logger = Reader(), logging.getLogger(LOGGER)
    before = list(logger.handlers)
    logger.handlers[:] = [reader]
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers[:] = before


def write(settings, *scores, **prompt):
    """Judge these scores, and write the verdicts down."""
    policy = bound(**settings)
    log = DecisionLog("served")
    verdicts = [policy.judge(each) for each in scores]
    for verdict in verdicts:
        log.record(Decision(verdict, policy.policy, request_id="chatcmpl-1", **prompt))
    return verdicts


def test_a_line_has_what_an_operator_looks_for(lines):
    """The event id, when, which request, on which route, of which model, what was decided and why, and who asked."""
    (verdict,) = write({}, [3.0], route="/v1/messages", caller="red-team", prompt_tokens=12, seconds=0.25)
    (line,) = lines
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "event_id": verdict.event_id,
        "request_id": "chatcmpl-1",
        "route": "/v1/messages",
        "model": "served",
        "judged": "prompt",
        "decision": "block",
        "action": "block",
        "mode": "enforce",
        "rule": "harmful",
        "category": "weapons",
        "unscored": None,
        "constraint": None,
        "policy": "p@1",
        "caller": "red-team",
        "tenant": None,
        "prompt_tokens": 12,
        "seconds": 0.25,
    }


@pytest.mark.parametrize(("which", "expected"), [("none", []), ("notable", [1, 2]), ("all", [0, 1, 2])])
def test_the_policy_says_which(lines, which, expected):
    """An allowed prompt is written down only if all are; one without a score is always notable."""
    verdicts = write({"which": which}, [0.0], [3.0], Unscored.MISSING)
    assert [line["event_id"] for line in lines] == [verdicts[number].event_id for number in expected]


def test_scores_are_there_only_if_the_operator_wants_them(lines):
    """They are off by default."""
    write({}, [3.0])
    write({"scores": True}, [3.0])
    assert ["scores" in line for line in lines] == [False, True]
    assert lines[1]["scores"] == {"harm": 3.0}


def test_an_adapter_is_the_model(lines):
    """A LoRA adapter that answers is named."""
    write({}, [3.0], model="tuned")
    assert lines[0]["model"] == "tuned"


def test_an_operator_s_logging_configuration_stands(lines):
    """A logger that has a handler gets no other."""
    DecisionLog("served")
    assert not any(type(handler) is logging.StreamHandler for handler in logging.getLogger(LOGGER).handlers)
