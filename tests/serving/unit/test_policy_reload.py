"""What the policy file says comes into force, or the reason why it does not is told and nothing changes."""

import asyncio

import numpy as np
import pytest
import yaml
from prometheus_client import CollectorRegistry

from guard.decide import bind
from guard.metrics import GuardMetrics
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.rollout import InForce, PolicyFile, Rollout
from guard.watched_file import WatchedFile
from probes.errors import PolicyError
from serving.api import policy_reload
from serving.api.policy_reload import PolicyReload

PROBES = ["harm"]


def text(version="1", probe="harm", **settings):
    """A policy in YAML."""
    rule = {"name": "r", "action": "block", "when": {probe: {"above": 2}}}
    return yaml.safe_dump({"name": "p", "version": version, "rules": [rule]} | settings)


def bound(file):
    """The file's policy, bound to one probe. Raises `PolicyError` for one that reads another."""
    return Rollout(PolicySet(bind(file.policy, PROBES, np.zeros((0, 1), dtype=np.float32))))


class Server:
    """A process that follows a policy file, and the engines that it hands policies to."""

    def __init__(self, path):
        self.path = path
        self.registry = CollectorRegistry()
        self.in_force = InForce(bound(PolicyFile(Policy.model_validate(yaml.safe_load(text())))))
        self.handed = []
        self.problem = None
        self.delay = 0.0
        metrics = GuardMetrics(self.registry, self.in_force.current)
        self.reload = PolicyReload(WatchedFile(path), self.in_force, metrics, bound, self.hand_over)

    async def hand_over(self, digest, text):
        """Take a policy to all engines."""
        self.handed.append((digest, text))
        await asyncio.sleep(self.delay)
        if self.problem:
            raise self.problem

    async def write(self, content):
        """Change the file, and look twice."""
        self.path.write_bytes(content if isinstance(content, bytes) else content.encode())
        for _ in range(2):
            await self.reload.look()

    @property
    def version(self):
        """The version in force."""
        return self.in_force.current.base.policy.version

    def counted(self, result):
        """How many changes became this."""
        return self.registry.get_sample_value("foreguard_policy_reloads_total", {"result": result})

    @property
    def succeeded(self):
        """Whether the file's policy is the one in force, by the metric."""
        return bool(self.registry.get_sample_value("foreguard_policy_last_reload_successful"))


@pytest.fixture
async def server(tmp_path, monkeypatch):
    """A server that has looked at its file, which says what is in force."""
    monkeypatch.setattr(policy_reload, "_RETRY_S", 0.0)
    monkeypatch.setattr(policy_reload, "_ANSWER_S", 0.05)
    server = Server(tmp_path / "policy.yaml")
    await server.write(text())
    assert server.handed == []
    yield server
    await server.reload.end()


async def test_a_new_policy_comes_into_force(server):
    """Every engine is given its digest and text first; then it is counted and published."""
    await server.write(text("2"))
    (handed,) = server.handed
    assert handed == (server.in_force.current.digest, text("2"))
    assert server.version == "2"
    assert (server.counted("applied"), server.counted("refused"), server.succeeded) == (1, 0, True)
    info = {"name": "p", "version": "2", "mode": "enforce", "variant": ""}
    assert server.registry.get_sample_value("foreguard_policy_info", info) == 1


async def test_a_comment_is_no_new_policy(server):
    """It says the same: no engine is asked, and nothing is counted."""
    await server.write("# mended\n" + text())
    assert (server.handed, server.counted("applied"), server.counted("refused")) == ([], 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name: [", "not YAML"),
        ("", "not a mapping"),
        (b"name: \xff", "not UTF-8"),
        (text(mode="maybe"), "mode"),
        (text(probe="unknown"), "unknown"),
    ],
)
async def test_a_bad_policy_changes_nothing(server, caplog, content, reason):
    """The log says why, the metric turns, and turns back when the old one is there again."""
    await server.write(content)
    assert (server.version, server.handed) == ("1", [])
    assert (server.counted("applied"), server.counted("refused"), server.succeeded) == (0, 1, False)
    assert reason in caplog.text
    assert "p@1 stays in force" in caplog.text
    await server.write(text())
    assert (server.counted("applied"), server.counted("refused"), server.succeeded) == (0, 1, True)


async def test_a_file_that_is_gone_changes_nothing(server, caplog):
    """Nor does its coming back."""
    server.path.unlink()
    for _ in range(4):
        await server.reload.look()
    assert (server.version, server.counted("refused"), server.succeeded) == ("1", 1, False)
    await server.write(text())
    assert (server.version, server.succeeded) == ("1", True)


async def test_a_policy_that_an_engine_does_not_take_waits(server, caplog):
    """The old one stays in force, and the new one is offered again."""
    server.problem = PolicyError("an engine decides by another policy", field="policy", remedy="none")
    await server.write(text("2"))
    assert (server.version, server.counted("refused"), server.succeeded) == ("1", 1, False)
    assert "another policy" in caplog.text
    server.problem = None
    await server.reload.look()
    assert (server.version, server.counted("applied"), server.succeeded) == ("2", 1, True)
    assert len(server.handed) == 2


async def test_a_full_engine_does_not_hold_the_policy_up(server, caplog):
    """It has the policy, and answers late; where it then decides by another one, the log says so."""
    server.delay, server.problem = 0.2, PolicyError("decides by another", field="policy", remedy="none")
    await server.write(text("2"))
    assert (server.version, server.counted("applied")) == ("2", 1)
    assert "it may be full" in caplog.text
    await asyncio.sleep(0.3)
    assert "does not decide by the policy in force" in caplog.text


async def test_the_file_is_followed(server, monkeypatch):
    """A change comes into force within two seconds, also after one that could not be looked at."""
    monkeypatch.setattr(server.reload, "_bind", lambda _policy: 1 / 0)
    server.reload.begin()
    server.path.write_text(text("2"))
    await asyncio.sleep(1)
    assert (server.version, server.counted("refused")) == ("1", 1)
    monkeypatch.setattr(server.reload, "_bind", bound)
    server.path.write_text(text("3"))
    await asyncio.sleep(2)
    assert server.version == "3"
