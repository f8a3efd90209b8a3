"""Clients that join an answer's content and its refusal, under a policy that has the message in the content alone."""

import pytest

from tests.clients.cases import PATHS, api, each, facts

pytestmark = [pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(600)]

STYLE = "refusal"
MESSAGE_IN = "content"


@each(lambda client: [(case, client.refused[case]) for case in client.doubled], "case", "expected")
def test_the_message_is_shown_once(ask, prompts, script, case, expected):
    """The client gives the operator's message, and no more, and asks once."""
    seen = ask(script, case, prompts.harmful)
    assert facts(seen, expected) == expected
    assert seen.requests == [(PATHS[api(case)], 200)]
