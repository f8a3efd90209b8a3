"""Clients that people use against a server that refuses: what a prompt is there, blocked and not, and how often each
asks.
"""

import pytest

from tests.clients.cases import PATHS, api, each, facts
from tests.clients.client import requests_since
from tests.clients.conftest import LIMIT
from tests.clients.evaluation import BATCH, COUNT, evaluate, pairs
from tests.serving.server import SERVED_NAME

pytestmark = [pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(600)]

STYLE = "refusal"
ROUNDING = 0.3


@pytest.fixture(scope="module")
def answer(server, prompts) -> str:
    """What the server says to the benign prompt."""
    messages = [{"role": "user", "content": prompts.benign}]
    reply = server.client().chat.completions.create(model=SERVED_NAME, messages=messages, temperature=0, max_tokens=64)
    return reply.choices[0].message.content


@each(lambda client: [(case,) for case in client.refused if case not in client.unable], "case")
def test_a_benign_prompt_is_answered(ask, prompts, answer, script, case):
    """The text is the server's, or an answer of the client's own kind (structured, a call, a continuation); one
    request.
    """
    seen = ask(script, case, prompts.benign)
    assert seen.error is None, seen.said
    assert seen.requests == [(PATHS[api(case)], 200)]
    assert seen.more.get("own") or seen.text == answer


@each(lambda client: [(case,) for case in client.refused], "case")
def test_a_blocked_prompt_is_asked_once(ask, prompts, script, case):
    """Neither a client's retries nor an agent's loop go on."""
    assert ask(script, case, prompts.harmful).requests == [(PATHS[api(case)], 200)]


@each(lambda client: [row for row in client.refused.items() if row[0] not in client.doubled], "case", "expected")
def test_a_blocked_prompt(ask, prompts, script, case, expected):
    """The client gives the operator's message once, or raises an error that is about it."""
    assert facts(ask(script, case, prompts.harmful), expected) == expected


@each(lambda client: [(case,) for case in client.followed], "case")
def test_a_refusal_is_a_turn_like_any_other(ask, prompts, script, case):
    """Given back as history, or named as the response before, it is understood."""
    seen = ask(script, case, prompts.harmful)
    assert seen.error is None, seen.said
    assert len(seen.requests) >= 2
    assert {status for _, status in seen.requests} == {200}


@pytest.mark.parametrize(("script", "case"), [("openai_client.py", "chat"), ("anthropic_client.py", "message")])
def test_the_body_tells_that_the_guard_did_it(ask, prompts, script, case):
    """The decision, the policy and the event's id, for a person whose client shows no headers."""
    guard = ask(script, case, prompts.harmful).more["guardrail"]
    assert (guard["decision"], guard["policy"]) == ("block", "clients@1")
    assert guard["event_id"].startswith("fge_")


def test_instructor_with_a_schema_asks_again(ask, prompts):
    """It takes no notice of a refusal there, and asks as often as it was told to: three times at most."""
    seen = ask("instructor_client.py", "chat_json_schema", prompts.harmful)
    assert 1 <= len(seen.requests) <= 3


def test_an_evaluation_runs_to_its_end(server, score, tmp_path):
    """EleutherAI's harness gets a result for each pair though batches hold blocked prompts, and asks nothing twice."""
    before, blocked = server.log.stat().st_size, server.metric("foreguard_requests_total", action="block")
    results, said = evaluate(server, tmp_path)
    assert results is not None, said[-4000:]
    blocked = server.metric("foreguard_requests_total", action="block") - blocked
    assert results["n-samples"]["pairs"]["effective"] == COUNT
    assert 0 <= results["results"]["pairs"]["acc,none"] <= 1
    scores = [score(messages) for pair in pairs() for messages in pair]
    least, most = (sum(each > LIMIT + shift for each in scores) for shift in (ROUNDING, -ROUNDING))
    assert 0 < least <= blocked <= most < 2 * COUNT
    asked = [request for request in requests_since(server, before) if request[0] == PATHS["completion"]]
    assert asked == [(PATHS["completion"], 200)] * -(-2 * COUNT // BATCH)
