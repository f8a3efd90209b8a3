"""Readiness turns when no prompt was scored for too long, and turns back."""

import asyncio
import math
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from guard.decide import bind
from guard.metrics import GuardMetrics
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.rollout import Rollout
from probes.errors import ServingError
from serving.api import readiness
from serving.api.readiness import Readiness

RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 2}}}
POLICY = Policy.model_validate({"name": "p", "version": "1", "rules": [RULE]})
BOUND = bind(POLICY, ["harm"], np.zeros((0, 1), dtype=np.float32))
AGE = 0.3


class Engine:
    """Answers canaries, hangs, or fails."""

    def __init__(self):
        self.asked = 0
        self.fault = None
        self.hangs = False

    async def canary(self):
        """Answer one."""
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(60)
        if self.fault:
            raise self.fault


@pytest.fixture
def registry():
    """A registry of our own."""
    return CollectorRegistry()


@pytest.fixture
async def watched(registry):
    """An engine, and a readiness that watches it."""
    engine = Engine()
    found = Readiness(engine.canary, GuardMetrics(registry, Rollout(PolicySet(BOUND))), AGE)
    found.begin()
    yield engine, found
    await found.end()


async def test_ready_while_canaries_are_scored(watched, registry):
    """Long after the self-test, without any client."""
    engine, found = watched
    await asyncio.sleep(2.5 * AGE)
    status, body = found.report()
    assert (status, body["ready"]) == (200, True)
    assert body["scored_seconds_ago"] <= AGE
    assert engine.asked >= 3
    assert registry.get_sample_value("foreguard_ready") == 1


@pytest.mark.parametrize(("kind", "reason"), [("hangs", "did not answer"), ("fails", "was not scored")])
async def test_unready_when_none_is_scored(watched, registry, kind, reason):
    """The answer says why, the metric turns too, and both turn back when the engine goes on."""
    engine, found = watched
    engine.hangs = kind == "hangs"
    engine.fault = ServingError("the canary was not scored", field="f", remedy="r") if kind == "fails" else None
    await asyncio.sleep(2.5 * AGE)
    status, body = found.report()
    assert (status, body["ready"]) == (503, False)
    assert reason in body["reason"]
    assert registry.get_sample_value("foreguard_ready") == 0
    stale = registry.get_sample_value("foreguard_last_scored_timestamp_seconds")
    engine.hangs, engine.fault = False, None
    await asyncio.sleep(1.5 * AGE)
    assert found.report()[0] == 200
    assert registry.get_sample_value("foreguard_ready") == 1
    assert registry.get_sample_value("foreguard_last_scored_timestamp_seconds") > stale


async def test_whatever_fails_the_next_canary_is_sent(watched):
    """An error that nobody foresaw ends neither the server nor the watch."""
    engine, found = watched
    engine.fault = RuntimeError("engine died")
    await asyncio.sleep(2.5 * AGE)
    assert "engine died" in found.report()[1]["reason"]
    assert engine.asked >= 3


async def test_no_canary_while_clients_are_scored(watched):
    """Their prompts show the same."""
    engine, found = watched
    for _ in range(20):
        found.note_scored()
        await asyncio.sleep(AGE / 10)
    assert engine.asked == 0
    assert found.report()[0] == 200


async def test_at_most_one_canary_an_interval(watched):
    """However often anyone asks."""
    engine, found = watched
    began = time.monotonic()
    for _ in range(50):
        found.report()
        await asyncio.sleep(AGE / 25)
    # On a busy machine the fifty take longer than two intervals.
    intervals = math.ceil((time.monotonic() - began) / AGE)
    assert engine.asked <= intervals * readiness._CANARIES_AN_AGE
