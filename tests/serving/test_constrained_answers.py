"""What a client constrains its answer to, on a real server: it says none of the guard's words, and no steering is
undone.
"""

import json

import httpx
import pytest

from serving.wire import STOP_ANSWER, STOP_BLOCKED
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, MESSAGE, OBSERVER_KEY, TOKENS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SAID = (STOP_BLOCKED, STOP_ANSWER, f"{STOP_BLOCKED}:0", f"{STOP_ANSWER}:{'0' * 32}", "content_filter", "foreguard")


def ask(client, messages, **options):
    """Return the choice, what the header says, and the whole body."""
    raw = client.chat.completions.with_raw_response.create(
        model=SERVED_NAME, messages=messages, **{"max_tokens": TOKENS, "temperature": 0, **options}
    )
    return raw.parse().choices[0], raw.headers["x-guardrail-decision"], raw.text


@pytest.mark.parametrize("said", SAID)
def test_no_client_can_say_what_the_gate_says(here, said):
    """A model that is made to say the gate's reasons, and stopped by them: header, body and books say that it was
    allowed.
    """
    blocked = here.server.metric("foreguard_requests_total", action="block")
    forced = {"structured_outputs": {"choice": [said]}, "max_tokens": 64}
    whole, decision, body = ask(here.client, BENIGN[0], extra_body=forced)
    assert (whole.message.content, decision) == (said, "allow")
    for options in ({"stop": [said]}, {"stop": [said, said[:-1]]}, {"stop": [said[-4:]], "n": 2, "temperature": 1.0}):
        stopped, decision, body = ask(here.client, BENIGN[0], extra_body={**forced, **options})
        assert (stopped.finish_reason, decision) == ("stop", "allow")
        assert stopped.message.content != MESSAGE
        assert "guardrail" not in json.loads(body)
    stream = here.client.chat.completions.create(
        model=SERVED_NAME, messages=BENIGN[0], stream=True, temperature=0, extra_body={**forced, "stop": [said]}
    )
    assert [each.choices[0].finish_reason for each in stream if each.choices][-1] == "stop"
    assert here.server.metric("foreguard_requests_total", action="block") == blocked


SCHEMA = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 8}}, "required": ["answer"]}
UNDOING = {
    "regex": {"structured_outputs": {"regex": "Sure, here is [a-z ]{5,20}\\."}},
    "choice": {"structured_outputs": {"choice": ["Sure", "Of course"]}},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "Sure"'}},
    "response format": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    "JSON": {"response_format": {"type": "json_object"}},
    "bad words": {"bad_words": ["I", "I cannot", "Sorry", "I can't"]},
    "logit bias": {"logit_bias": {"40": -100}},
    "allowed tokens": {"allowed_token_ids": list(range(20, 60))},
    "min tokens": {"min_tokens": 8},
    "no end": {"ignore_eos": True},
    "repetition penalty": {"repetition_penalty": 5.0},
}


@pytest.mark.parametrize("how", UNDOING)
def test_a_steered_request_that_may_undo_it_is_blocked(here, how):
    """With the message, no token and a header that says so.

    Harmless requests, and those of an observer, have their way.
    """
    choice, decision, body = ask(here.client, here.steered, extra_body=UNDOING[how])
    assert (choice.finish_reason, choice.message.content, decision) == ("content_filter", MESSAGE, "block")
    assert json.loads(body)["usage"]["completion_tokens"] == 0
    assert ask(here.client, BENIGN[0], extra_body=UNDOING[how])[1] == "allow"
    watched = UNDOING[how] | {"moderation": {"mode": "score"}}
    choice, decision, body = ask(here.server.client(OBSERVER_KEY), here.steered, extra_body=watched)
    assert (choice.finish_reason in ("stop", "length"), decision) == (True, "allow")
    assert json.loads(body)["moderation"]["input"]["results"][0]["flagged"] is True


@pytest.mark.parametrize("how", ["bad words", "choice"])
def test_whatever_the_route(here, how):
    """Completions, and chats in a batch: what counts is what reaches the engine."""
    raw = here.client.completions.with_raw_response.create(
        model=SERVED_NAME,
        prompt=here.rendered(here.steered),
        max_tokens=TOKENS,
        extra_body={"add_special_tokens": False, **UNDOING[how]},
    )
    assert (raw.parse().choices[0].text, raw.headers["x-guardrail-decision"]) == (MESSAGE, "block")
    body = {"model": SERVED_NAME, "messages": [here.steered], "max_tokens": TOKENS, **UNDOING[how]}
    reply = httpx.post(f"{here.server.url}/v1/chat/completions/batch", json=body, timeout=60)
    assert reply.headers["x-guardrail-decision"] == "block"
    assert reply.json()["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    "options",
    [{}, {"stop": ["I"]}, {"n": 2, "temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"logprobs": True}],
)
def test_an_ordinary_request_is_steered(here, options):
    """What constrains nothing is steered as ever."""
    assert ask(here.client, here.steered, **options)[1] == "steer"
