"""A live server takes in a new policy: everywhere within two seconds, and each request is under one policy."""

import asyncio
import json
import time
from pathlib import Path

import httpx
import pytest

from tests.serving.live_policy import SETTLED_S, SOON_S, ConfigMap, Live
from tests.serving.planted import dividing_limit
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, block_limit, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOKENS = 20


@pytest.fixture(scope="module")
def limit(reference, artifact):
    """Between what two harmless prompts' answers come to, so that one is ended in its middle and the other is not."""
    return dividing_limit(reference, artifact, BENIGN[:8], TOKENS)


@pytest.fixture(scope="module")
def live(start, reference, artifact):
    """A server whose policy is `enforce`."""
    flags = ["--enforce-eager", "--api-server-count", "2"]
    with start(policy_text(reference, artifact), *flags, linked=True) as server:
        yield Live(server, block_limit(reference, artifact), clearly_harmful(reference, artifact, 4))


def test_a_hundred_changes_in_ten_seconds(live):
    """As the kubelet makes them of a ConfigMap that the server was started with: the last one is in force soon.

    It is the first test: later ones put a file in the link's place.
    """
    mounted = ConfigMap(live.file.parent)
    mounted.write(live.text("unchanged"))
    live.wait_for("unchanged")
    before = live.unscored()
    for number in range(100):
        mounted.write(live.text(f"change{number}"))
        assert live.ask(live.harmful[0]).headers["x-guardrail-decision"] == "block"
        time.sleep(max(0.0, 0.1 - 0.02))
    assert live.wait_for("change99") < SOON_S
    assert live.unscored() == before


def test_a_new_policy_is_in_force_everywhere_and_soon(live):
    """Its label, its action and its message, from both API processes."""
    for name in ("first", "second"):
        live.write(live.text(name))
        assert live.wait_for(name) < SOON_S
        for _ in range(8):
            reply = live.ask(live.harmful[0])
            assert reply.headers["x-guardrail-decision"] == "block"
            assert reply.json()["choices"][0]["message"]["content"] == f"{name} declines."
    live.write(live.text("third", action="flag"))
    assert live.wait_for("third") < SOON_S
    assert {live.ask(live.harmful[0]).headers["x-guardrail-decision"] for _ in range(8)} == {"flag"}
    assert live.server.metric("foreguard_policy_info", name="third") == 1
    assert live.server.metric("foreguard_policy_info", name="second") == 0
    assert live.server.metric("foreguard_threshold", rule="harmful") == pytest.approx(live.limit)


@pytest.mark.parametrize("bad", ["name: [", "name: bad\n", "unbound", "half"])
def test_a_bad_policy_changes_nothing(live, bad):
    """What is no policy, what reads a probe that is not there, and what is half written: the old one decides."""
    live.write(live.text("good"))
    live.wait_for("good")
    texts = {"unbound": live.text("bad").replace("{harm:", "{nothing:"), "half": live.text("bad")[:60]}
    live.file.write_text(texts.get(bad, bad))
    time.sleep(2 * SETTLED_S)
    assert live.labels() == {"good@1"}
    assert live.ask(live.harmful[0]).headers["x-guardrail-decision"] == "block"
    assert live.server.metric("foreguard_policy_last_reload_successful") == 0
    assert "good@1 stays in force" in live.server.log.read_text()
    live.write(live.text("good"))
    time.sleep(2 * SETTLED_S)
    assert live.server.metric("foreguard_policy_last_reload_successful") == 1


async def test_a_request_is_under_one_policy(live):
    """Under load, while the policy is exchanged again and again: decided, answered and logged by the same one."""
    live.write(live.text("even"))
    live.wait_for("even")
    before, is_over, replies = live.unscored(), asyncio.Event(), []

    async def ask(client, number):
        turn = 0
        while not is_over.is_set():
            turn += 1
            messages = live.harmful[number % 4] if turn % 2 else BENIGN[number % 8]
            body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 4, "stream": bool(number % 3)}
            body["n"] = 1 + number % 2
            replies.append((turn % 2, await client.post("/v1/chat/completions", json=body)))

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=live.server.url, timeout=60, limits=limits) as client:
        asking = [asyncio.create_task(ask(client, number)) for number in range(24)]
        for number in range(16):
            action = "flag" if number % 2 else "block"
            live.write(live.text("odd" if number % 2 else "even", action))
            await asyncio.sleep(0.7)
        is_over.set()
        await asyncio.gather(*asking)
    assert live.unscored() == before
    logged = _logged(live.server.log)
    found = set()
    for is_harmful, reply in replies:
        assert reply.status_code == 200, reply.text
        name, decision = reply.headers["x-guardrail-policy"].split("@")[0], reply.headers["x-guardrail-decision"]
        if is_harmful:
            assert decision == {"even": "block", "odd": "flag"}[name]
            assert ("even declines." in reply.text) is (name == "even")
            assert logged[reply.headers["x-guardrail-event-id"]] == (f"{name}@1", decision)
            found.add(name)
    assert found == {"even", "odd"}


async def test_an_engine_that_does_not_answer_holds_no_policy_up(live):
    """Requests that come now are under the new policy, as the engine finds when it goes on; earlier ones are not."""
    live.write(live.text("before"))
    live.wait_for("before")
    async with httpx.AsyncClient(base_url=live.server.url, timeout=60) as client:
        with live.server.engine_stopped() as go_on:
            early = asyncio.gather(*(client.post("/v1/chat/completions", json=_short(BENIGN[i])) for i in range(12)))
            await asyncio.sleep(0.5)
            live.write(live.text("after"))
            await asyncio.sleep(SOON_S)
            late = asyncio.gather(*(client.post("/v1/chat/completions", json=_short(each)) for each in live.harmful))
            await asyncio.sleep(0.5)
            go_on()
            answers = {"before": await early, "after": await late}
    for name, replies in answers.items():
        assert {reply.headers["x-guardrail-policy"] for reply in replies} == {f"{name}@1"}
    assert {reply.headers["x-guardrail-decision"] for reply in answers["after"]} == {"block"}
    assert "has not yet answered" in live.server.log.read_text()
    assert live.labels() == {"after@1"}


def test_rules_on_answers_come_and_go(live, limit):
    """An answer under the first policy is watched, and one under the next is not."""
    watch = f"[{{name: too-much, action: block, when: {{deep_swim: {{above: {limit}}}}}}}]"
    for name, more in (("watching", {"answer_rules": watch}), ("unwatched", {})):
        live.write(live.text(name, **more))
        live.wait_for(name)
        replies = [live.ask(messages, max_tokens=TOKENS, temperature=0).json() for messages in BENIGN[:8]]
        reasons = {reply["choices"][0]["finish_reason"] for reply in replies}
        assert ("content_filter" in reasons) is (name == "watching")


def _short(messages):
    return {"model": SERVED_NAME, "messages": messages, "max_tokens": 2}


def _logged(log: Path):
    """The policy and the decision of each line of the decision log, by event id."""
    lines = [line[line.index("{") :] for line in log.read_text().splitlines() if '"event_id"' in line]
    made = [json.loads(line) for line in lines]
    return {line["event_id"]: (line["policy"], line["decision"]) for line in made}
