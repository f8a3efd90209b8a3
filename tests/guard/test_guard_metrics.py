"""Metrics count each verdict once, start at zero, and add up over processes."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from guard.decide import bind
from guard.drift.exposition import DriftMetrics
from guard.drift.novelty import novelty_reference
from guard.drift.reference import references
from guard.drift.sink import Compared, DriftSink
from guard.metrics import PUBLIC, GuardMetrics, is_public
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.rollout import Rollout
from guard.store.exposition import StoreMetrics
from guard.verdict import Action, Mode, Unscored

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture
def bound(policy):
    """A policy with a rule at harm > 2 and a combination."""
    return bind(
        policy(("r", "block", {"harm": {"above": 2}}), combine={"gap": {"harm": 1, "refusal": -1}}),
        ("harm", "refusal"),
        np.zeros((0, 2), dtype=np.float32),
    )


@pytest.fixture
def registry():
    """A registry of our own."""
    return CollectorRegistry()


def test_every_series_starts_at_zero(bound, registry):
    """A series that appears only with its first event hides that event from rate(): all are there before it."""
    GuardMetrics(registry, Rollout(PolicySet(bound)))
    for action in Action:
        for mode in Mode:
            labels = {"action": action.value, "mode": mode.value}
            assert registry.get_sample_value("foreguard_requests_total", labels) == 0
    for reason in Unscored:
        assert registry.get_sample_value("foreguard_unscored_total", {"reason": reason.value}) == 0
    for probe in ("harm", "refusal", "gap"):
        assert registry.get_sample_value("foreguard_score_count", {"probe": probe, "adapter": ""}) == 0
    assert registry.get_sample_value("foreguard_decision_seconds_count") == 0


def test_verdicts_are_counted_by_decision_and_mode(bound, registry):
    """Two blocks (one of them in shadow), one allow, one unscored: each in its own series, scores in their
    histograms.
    """
    metrics = GuardMetrics(registry, Rollout(PolicySet(bound)))
    for verdict in (
        bound.judge([3, 1]),
        bound.judge([4, 1], shadow=True),
        bound.judge([-1, 0]),
        bound.judge(Unscored.TAP_SILENT),
    ):
        metrics.observe(verdict)

    def requests(action, mode):
        return registry.get_sample_value("foreguard_requests_total", {"action": action, "mode": mode})

    assert requests("block", "enforce") == 2
    assert requests("block", "shadow") == 1
    assert requests("allow", "enforce") == 1
    assert requests("allow", "shadow") == 0
    assert registry.get_sample_value("foreguard_unscored_total", {"reason": "tap_silent"}) == 1
    assert registry.get_sample_value("foreguard_score_count", {"probe": "harm", "adapter": ""}) == 3
    for probe, bound_of_bucket, below in (
        ("harm", "3.0", 2),
        ("harm", "-1.0", 1),
        ("gap", "-0.5", 1),
        ("gap", "2.0", 2),
    ):
        labels = {"probe": probe, "adapter": "", "le": bound_of_bucket}
        assert registry.get_sample_value("foreguard_score_bucket", labels) == below
    assert registry.get_sample_value("foreguard_decision_seconds_count") == 4


def test_policy_and_thresholds_are_published(bound, registry):
    """A dashboard can draw the threshold beside the scores, and say which policy is in force."""
    GuardMetrics(registry, Rollout(PolicySet(bound)))
    assert (
        registry.get_sample_value("foreguard_threshold", {"rule": "r", "probe": "harm", "adapter": "", "variant": ""})
        == 2
    )
    info = {"name": "test", "version": "1", "mode": "enforce", "variant": ""}
    assert registry.get_sample_value("foreguard_policy_info", info) == 1


def test_adapters_have_series_of_their_own(bound, policy, registry):
    """An adapter's artifact has other probes, combinations and thresholds than the model's: none is missing or mixed
    up.
    """
    combined = {"sum": {"harm": 1, "depth": 1}}
    own = bind(
        policy(("r", "block", {"depth": {"above": {"target_fpr": 0.5}}}), combine=combined),
        ("depth", "harm"),
        np.linspace(-2, 2, 40, dtype=np.float32).reshape(20, 2),
    )
    metrics = GuardMetrics(registry, Rollout(PolicySet(bound, {"polite": own})))
    metrics.observe(bound.judge([3, 1]))
    metrics.observe(own.judge([4, 1]), "polite")
    metrics.observe(own.judge(Unscored.ADAPTER), "one that has no artifact")

    def read(name, **labels):
        return registry.get_sample_value(name, labels)

    for probe in ("harm", "refusal", "gap"):
        assert read("foreguard_score_count", probe=probe, adapter="") == 1
    for probe in ("harm", "depth", "sum"):
        assert read("foreguard_score_count", probe=probe, adapter="polite") == 1
    assert read("foreguard_score_bucket", probe="harm", adapter="", le="2.0") == 0
    assert read("foreguard_score_bucket", probe="harm", adapter="polite", le="2.0") == 1
    assert read("foreguard_threshold", rule="r", probe="harm", adapter="", variant="") == 2
    assert (
        read("foreguard_threshold", rule="r", probe="depth", adapter="polite", variant="")
        == own.thresholds["r", "depth"]
    )


def test_a_policy_that_comes_into_force_is_published(registry):
    """Its thresholds and its name; those of the one before are not a number, and 0. New combinations have scores."""
    rule = {"name": "old", "action": "block", "when": {"harm": {"above": 2}}}
    settings = {"name": "p", "version": "1", "rules": [rule]}
    first = bind(Policy.model_validate(settings), ["harm"], np.zeros((0, 1), dtype=np.float32))
    rule = {"name": "new", "action": "block", "when": {"both": {"above": 3}}}
    settings = {"name": "p", "version": "2", "mode": "shadow", "rules": [rule], "combine": {"both": {"harm": 2.0}}}
    second = bind(Policy.model_validate(settings), ["harm"], np.zeros((0, 1), dtype=np.float32))
    metrics = GuardMetrics(registry, Rollout(PolicySet(first)))
    metrics.publish(Rollout(PolicySet(second)))

    def value(name, /, **labels):
        return registry.get_sample_value(name, labels)

    assert math.isnan(value("foreguard_threshold", rule="old", probe="harm", adapter="", variant=""))
    assert value("foreguard_threshold", rule="new", probe="both", adapter="", variant="") == 3
    assert value("foreguard_policy_info", name="p", version="1", mode="enforce", variant="") == 0
    assert value("foreguard_policy_info", name="p", version="2", mode="shadow", variant="") == 1
    metrics.observe(first.judge([1.0]))
    metrics.observe(second.judge([1.0]))
    assert value("foreguard_score_count", probe="harm", adapter="") == 2
    assert value("foreguard_score_count", probe="both", adapter="") == 1
    metrics.publish(Rollout(PolicySet(first)))
    assert value("foreguard_threshold", rule="old", probe="harm", adapter="", variant="") == 2
    assert value("foreguard_policy_info", name="p", version="1", mode="enforce", variant="") == 1


def test_reloads_are_counted_by_what_became_of_them(registry, bound):
    """And a gauge says whether the file's policy is the one in force."""
    metrics = GuardMetrics(registry, Rollout(PolicySet(bound)))
    for result, good in (("applied", 1), ("refused", 0), ("refused", 0), ("applied", 1)):
        metrics.observe_reload(result)
        assert registry.get_sample_value("foreguard_policy_last_reload_successful") == good
    for result in ("applied", "refused"):
        assert registry.get_sample_value("foreguard_policy_reloads_total", {"result": result}) == 2


def snapshot():
    """What a watch for drift has to tell after one decision."""
    harm, novelty = references(["harm"], np.arange(1000.0)[:, None]), novelty_reference(np.arange(1000.0), 0.95, 0.99)
    return DriftSink(Compared({"": harm}, novelty={"": {"novelty": novelty}})).snapshot()


def registered(registry):
    """Every metric of the registry as `name: labels`, the names as Prometheus stores them."""
    found = {}
    for metric in registry.collect():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        found[name] = labels
    return found


def test_every_metric_is_public_or_not(bound, registry):
    """A metric that is new is in the table before it is anywhere: until then it is not public."""
    GuardMetrics(registry, Rollout(PolicySet(bound)))
    DriftMetrics(registry)
    StoreMetrics(registry)
    assert {metric.name for metric in registry.collect()} == set(PUBLIC)
    assert [is_public(name) for name in ("foreguard_new", "foreguard_score_sum", "vllm:tokens", "python_info")] == [
        False,
        False,
        True,
        True,
    ]


def test_documentation_says_which_metrics_need_the_key():
    """The last column of the table in docs/metrics.md is what the server does."""
    rows = re.findall(r"^\| `foreguard_(\w+?)(?:_total)?` \|.*\| (key|anybody) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert {f"foreguard_{name}": who == "anybody" for name, who in rows} == PUBLIC


def test_documentation_names_every_metric_and_label(bound, registry):
    """The table in docs/metrics.md has one row per metric that is registered, with its labels, and no other."""
    GuardMetrics(registry, Rollout(PolicySet(bound)))
    DriftMetrics(registry).publish(snapshot())
    StoreMetrics(registry)
    rows = re.findall(r"^\| `(foreguard_\w+)` \| \w+ \| ([^|]*) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert documented == registered(registry)


def test_documentation_lists_every_label_value():
    """Actions, modes and reasons for an unscored prompt are all explained."""
    text = DOCUMENT.read_text()
    values = [value.value for kind in (Action, Mode, Unscored) for value in kind]
    assert [value for value in values if f"`{value}`" not in text] == []


def test_alert_rules_use_metrics_that_exist(bound, registry):
    """Every metric that an example alert asks for is registered."""
    GuardMetrics(registry, Rollout(PolicySet(bound)))
    DriftMetrics(registry).publish(snapshot())
    rules = "".join(block.split("```")[0] for block in DOCUMENT.read_text().split("```yaml\n")[1:])
    used = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"foreguard_[a-z_]+", rules)}
    assert used
    assert used <= set(registered(registry))


def test_no_prompt_and_no_caller_becomes_a_label(bound, registry):
    """Label values come from the policy, the artifact or an enumeration: an attacker cannot make series."""
    metrics = GuardMetrics(registry, Rollout(PolicySet(bound)))
    before = len(generate_latest(registry).splitlines())
    for index in range(50):
        metrics.observe(bound.judge([index, -index], tighten=bool(index % 2)))
    assert len(generate_latest(registry).splitlines()) == before


CHILD = """
import numpy as np
from prometheus_client import REGISTRY
from guard.decide import bind
from guard.metrics import PUBLIC, GuardMetrics, is_public
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.store.exposition import StoreMetrics
from guard.rollout import Rollout
rules = [{"name": "r", "action": "block", "when": {"harm": {"above": 2}}}]
policy = Policy.model_validate({"name": "test", "version": "1", "rules": rules})
bound = bind(policy, ["harm"], np.zeros((0, 1), dtype=np.float32))
metrics = GuardMetrics(REGISTRY, Rollout(PolicySet(bound)))
for score in (1, 3, 5):
    metrics.observe(bound.judge([score]))
"""

PARENT = """
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
from prometheus_client import generate_latest
print(generate_latest(registry).decode())
"""


def test_two_processes_add_up(tmp_path):
    """With prometheus-client's multiprocess mode, two API servers count 2 × 3 prompts, and the threshold stays one
    number.
    """
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(code):
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(CHILD)
    run(CHILD)
    page = run(PARENT).splitlines()
    assert 'foreguard_requests_total{action="block",mode="enforce"} 4.0' in page
    assert 'foreguard_requests_total{action="allow",mode="enforce"} 2.0' in page
    assert 'foreguard_requests_total{action="flag",mode="enforce"} 0.0' in page
    assert 'foreguard_score_count{adapter="",probe="harm"} 6.0' in page
    assert 'foreguard_threshold{adapter="",probe="harm",rule="r",variant=""} 2.0' in page
    assert 'foreguard_policy_info{mode="enforce",name="test",variant="",version="1"} 1.0' in page
