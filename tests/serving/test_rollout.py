"""A policy is rolled out on a live server, as an operator does it: beside, to some, to all, and back. No restart."""

import hashlib
import json
import time

import httpx
import pytest

from tests.serving.live_policy import SOON_S, Live
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, OBSERVER_KEY, block_limit, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ACME, GATEWAY = "a token of acme's", "the gateway's own key"
CALLERS = [f"caller {number}" for number in range(40)]


def digest(word):
    """Its SHA-256, in hexadecimal."""
    return hashlib.sha256(word.encode()).hexdigest()


class Rolling(Live):
    """A server whose policy flags what is harmful, in shadow mode, and has variants."""

    def rolled(self, name, **settings):
        """The policy under this name, with these settings of its rollout."""
        blocks = [{"name": "harmful", "action": "block", "when": {"harm": {"above": self.limit}}}]
        variants = {"enforcing": {"mode": "enforce"}, "flagging": {"rules": [blocks[0] | {"action": "flag"}]}}
        variants["flagging"]["mode"] = "enforce"
        callers = [{"name": "observer", "key_sha256": digest(OBSERVER_KEY), "may_choose": ["flagging"]}]
        made = {"name": name, "version": "1", "mode": "shadow", "off_template": "allow", "rules": blocks}
        made |= {"variants": variants, "callers": callers, "response": {"message": "No."}, **settings}
        return json.dumps(made)  # which is YAML, too

    def roll(self, name, **settings):
        """Put it in force everywhere."""
        self.write(self.rolled(name, **settings))
        end = time.monotonic() + 10
        while self.server.metric("foreguard_policy_info", name=name) == 0 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(SOON_S / 2)

    def reply(self, messages, token=None, **more):
        """Ask as the bearer of a token."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 2} | more.pop("body", {})
        url = f"{self.server.url}{more.pop('path', '/v1/chat/completions')}"
        return httpx.post(url, json=body, headers=headers | more, timeout=60)

    def told(self, *args, **more):
        """The policy and the decision that an answer tells."""
        reply = self.reply(*args, **more)
        return reply.headers["x-guardrail-policy"], reply.headers["x-guardrail-decision"]

    def logged(self):
        """The last line of the decision log."""
        lines = [line for line in self.server.log.read_text().splitlines() if '"event_id"' in line]
        return json.loads(lines[-1][lines[-1].index("{") :])


@pytest.fixture(scope="module")
def live(start, reference, artifact):
    """A server of one API process."""
    with start(policy_text(reference, artifact), "--enforce-eager") as server:
        yield Rolling(server, block_limit(reference, artifact), clearly_harmful(reference, artifact, 4))


def test_a_variant_is_judged_beside_and_only_recorded(live):
    """The answer is the policy's; the log and a metric say what the variant would have done."""
    live.roll("beside", shadow="flagging", mode="enforce")
    before = live.server.metric("foreguard_shadow_decisions_total", action="block", would="flag")
    assert live.told(live.harmful[0]) == ("beside@1", "block")
    assert live.logged()["shadow"] == {
        "policy": "beside@1+flagging",
        "decision": "flag",
        "rule": "harmful",
        "category": None,
    }
    assert live.told(BENIGN[0]) == ("beside@1", "allow")
    assert live.server.metric("foreguard_shadow_decisions_total", action="block", would="flag") == before + 1


def test_enforcement_comes_to_some_then_to_all_and_goes_again(live):
    """Shadow, then a share of the callers, then a larger one with the first ones in it, all of them, and back."""
    live.roll("shadow")
    assert live.told(live.harmful[0]) == ("shadow@1", "allow")
    enforced = []
    for percent in (20, 60, 100):
        live.roll("share", canary={"variant": "enforcing", "percent": percent}, version=f"{percent}")
        told = {caller: live.told(live.harmful[0], caller) for caller in CALLERS}
        assert set(told.values()) <= {(f"share@{percent}", "allow"), (f"share@{percent}+enforcing", "block")}
        assert told == {caller: live.told(live.harmful[0], caller) for caller in CALLERS}
        enforced.append({caller for caller, (_, decision) in told.items() if decision == "block"})
    assert set() < enforced[0] < enforced[1] < enforced[2] == set(CALLERS)
    live.roll("back")
    assert {live.told(live.harmful[0], caller) for caller in CALLERS[:8]} == {("back@1", "allow")}


def test_a_tenant_has_rules_of_its_own(live):
    """Known by its token, or by the gateway's word beside the gateway's key; the log names it."""
    gateway = {"tenant_header": "x-tenant", "key_header": "x-gateway", "key_sha256": digest(GATEWAY)}
    tenants = [{"name": "acme", "keys_sha256": [digest(ACME)]}]
    overrides = [{"variant": "enforcing", "tenants": ["acme"]}]
    live.roll("tenants", tenants=tenants, overrides=overrides, gateway=gateway)
    own, others = ("tenants@1+enforcing", "block"), ("tenants@1", "allow")
    assert live.told(live.harmful[0], ACME) == own
    assert live.logged()["tenant"] == "acme"
    assert live.told(live.harmful[0]) == others
    assert live.told(live.harmful[0], **{"x-tenant": "acme"}) == others
    assert live.told(live.harmful[0], **{"x-tenant": "acme", "x-gateway": "a guess"}) == others
    assert live.told(live.harmful[0], **{"x-tenant": "acme", "x-gateway": GATEWAY}) == own


def test_a_route_has_rules_of_its_own(live):
    """Whatever the body says of itself."""
    live.roll("routes", overrides=[{"variant": "enforcing", "routes": ["/v1/messages"]}])
    assert live.told(live.harmful[0]) == ("routes@1", "allow")
    assert live.told(live.harmful[0], path="/v1/messages") == ("routes@1+enforcing", "block")


def test_a_caller_chooses_what_the_operator_granted(live):
    """A milder variant, where everyone else is blocked; nobody else may, and nobody may choose another."""
    live.roll("choice", mode="enforce")

    def asks(variant):
        return {"body": {"moderation": {"variant": variant}}}

    assert live.told(live.harmful[0], OBSERVER_KEY) == ("choice@1", "block")
    assert live.told(live.harmful[0], OBSERVER_KEY, **asks("flagging")) == ("choice@1+flagging", "flag")
    for token, variant in ((None, "flagging"), (ACME, "flagging"), (OBSERVER_KEY, "enforcing"), (OBSERVER_KEY, "x")):
        refused = live.reply(live.harmful[0], token, **asks(variant))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "moderation"
