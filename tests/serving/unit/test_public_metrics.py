"""The public page of metrics has these series and no other, whatever a client library makes of a metric."""

import re
import subprocess
import sys

import numpy as np
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge

import guard.metrics
from guard.decide import bind
from guard.metrics import GuardMetrics
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.rollout import Rollout
from serving.api.public_metrics import public_page

RULES = [{"name": "secret_rule", "action": "block", "when": {"secret_probe": {"above": 2.125}}}]
POLICY = Policy.model_validate({"name": "test", "version": "1", "rules": RULES})
BOUND = bind(POLICY, ["secret_probe"], np.zeros((0, 1), dtype=np.float32))
COUNTED = "requests", "unscored", "errors", "answers", "answers_unscored", "policy_reloads"
RELOADED = "last_reload_successful", "last_reload_success_timestamp_seconds"
SERIES = {
    *(f"foreguard_{name}_{end}" for name in COUNTED for end in ("total", "created")),
    *(f"foreguard_decision_seconds_{end}" for end in ("bucket", "count", "sum", "created")),
    *(f"foreguard_policy_{name}" for name in RELOADED),
    *(f"foreguard_{name}" for name in ("ready", "last_scored_timestamp_seconds", "policy_info")),
}
"""Every series that whoever may ask for metrics may read."""


def observed(registry):
    """The metrics of a server that has judged prompts and answers, and cannot read one of each."""
    metrics = GuardMetrics(registry, Rollout(PolicySet(BOUND)))
    for score in (1.5, 3.5):
        metrics.observe(BOUND.judge([score]))
        metrics.observe_answer(BOUND.judge([score]), 7)
    return metrics


def series(page):
    """The names of a page's series, and of what its comments describe."""
    described = re.findall(r"^# \w+ (\S+)", page, re.MULTILINE)
    return set(re.findall(r"^(\w+)[{ ]", page, re.MULTILINE)), set(described)


@pytest.mark.parametrize("buckets", [guard.metrics.SCORE_BUCKETS, (0.0, 1.0, 2.0)])
def test_public_series(monkeypatch, buckets):
    """Also where the library would add up scores in a `_sum`, as it does when no bucket is negative."""
    monkeypatch.setattr(guard.metrics, "SCORE_BUCKETS", buckets)
    registry = CollectorRegistry()
    observed(registry)
    Gauge("foreguard_new", "Not in the table yet.", registry=registry).set(1)
    Gauge("vllm_new", "Of vLLM's.", registry=registry).set(1)
    monkeypatch.setattr("serving.api.public_metrics.get_prometheus_registry", lambda: registry)
    page = public_page().decode()
    found, described = series(page)
    assert found == SERIES | {"vllm_new"}
    assert not {name for name in described if "score" in name.replace("unscored", "").replace("last_scored", "")}
    for told in ("secret", "2.125", "foreguard_new"):
        assert told not in page


WRITE = """
import sys
from prometheus_client import REGISTRY
sys.path.insert(0, {root!r})
from tests.serving.unit.test_public_metrics import observed
metrics = observed(REGISTRY)
metrics.observe_readiness(True, 1.0)
"""


def test_two_api_servers(monkeypatch, tmp_path, request):
    """Their metrics add up on the public page, too, and neither's scores are on it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    write = WRITE.format(root=str(request.config.rootpath))
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    page = public_page().decode()
    assert 'foreguard_requests_total{action="block",mode="enforce"} 2.0' in page
    found, _ = series(page)
    assert found == {name for name in SERIES if not name.endswith("_created")}
    assert "secret" not in page


def test_vllm_s_registry_is_the_process_s():
    """With one API server the page reads the registry in which the guard counts."""
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    assert get_prometheus_registry() is REGISTRY
