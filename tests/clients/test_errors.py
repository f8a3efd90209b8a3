"""Clients that people use against a server whose blocks are errors: each raises one of its own, and does not ask
again.
"""

import pytest

from tests.clients.cases import PATHS, api, each
from tests.clients.client import requests_since
from tests.clients.evaluation import evaluate
from tests.serving.world import MESSAGE

pytestmark = [pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(600)]

STYLE = "error"


@each(
    lambda client: [(case, client.error_on(api(case))) for case in (*client.refused, *client.not_refused)],
    "case",
    "error",
)
def test_a_blocked_prompt(ask, prompts, script, case, error):
    """The error is the client's own for a request at fault, with the operator's message in it."""
    seen = ask(script, case, prompts.harmful)
    assert (seen.error, seen.said.count(MESSAGE)) == (error, 1)
    assert seen.requests == [(PATHS[api(case)], 400)]


@pytest.mark.parametrize(("script", "case"), [("openai_client.py", "chat"), ("anthropic_client.py", "message")])
def test_the_error_tells_that_the_guard_did_it(ask, prompts, script, case):
    """Its body has a code to go by, and the decision, the policy and the event's id."""
    seen = ask(script, case, prompts.harmful)
    assert seen.code == "content_filter"
    guard = seen.more["guardrail"]
    assert (guard["decision"], guard["policy"]) == ("block", "clients@1")
    assert guard["event_id"].startswith("fge_")


def test_an_evaluation_ends(server, tmp_path):
    """EleutherAI's harness says why, and asks no more than the three times that are its own bound."""
    before = server.log.stat().st_size
    results, said = evaluate(server, tmp_path)
    assert results is None
    assert MESSAGE in said
    asked = [status for path, status in requests_since(server, before) if path == PATHS["completion"]]
    assert 1 <= asked.count(400) <= 3
