"""Watched answers as a client and an operator see them: a real server, OpenAI's client, its metrics."""

import json

import httpx
import openai
import pytest

from tests.serving.planted import dividing_limit
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]
TOKENS = 20
POLICY = """
name: watching
version: "1"
off_template: allow
rules:
  - {{name: never, action: block, when: {{harm: {{above: 1000000.0}}}}}}
answer_rules:
  - {{name: too-much, action: block, when: {{deep_swim: {{above: {limit}}}}}}}
"""


@pytest.fixture(scope="module")
def limit(reference, artifact):
    """Between what two harmless prompts' answers come to, so that one is ended in its middle and the other is not."""
    return dividing_limit(reference, artifact, BENIGN[:8], TOKENS)


@pytest.fixture(scope="module")
def server(start, limit):
    """A guarded server that watches answers."""
    with start(POLICY.format(limit=limit), "--enforce-eager") as server:
        yield server


@pytest.fixture(scope="module")
def ended(server):
    """A prompt whose answer is ended, and one whose answer is not."""
    replies = {i: ask(server.client(), messages) for i, messages in enumerate(BENIGN[:8])}
    reasons = {i: reply.choices[0].finish_reason for i, reply in replies.items()}
    yes = next(i for i, reason in reasons.items() if reason == "content_filter")
    no = next(i for i, reason in reasons.items() if reason != "content_filter")
    return BENIGN[yes], BENIGN[no]


def ask(client: openai.OpenAI, messages, **options):
    return client.chat.completions.create(
        model=SERVED_NAME, messages=messages, max_tokens=TOKENS, temperature=0, **options
    )


def test_what_was_said_stays_and_nothing_follows(server, ended):
    """Whole or streamed, the same text, and finish reason `content_filter`; no word of the guard's own in it."""
    yes, _ = ended
    whole = ask(server.client(), yes)
    assert whole.choices[0].finish_reason == "content_filter"
    assert 0 < whole.usage.completion_tokens < TOKENS
    chunks = list(ask(server.client(), yes, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "content_filter"
    ]


def test_headers_and_moderation_say_it_of_a_whole_answer(server, ended):
    """Of the answer: the prompt was allowed. A streamed one cannot know yet, and says so."""
    for messages, header, flagged in zip(ended, ("block", None), (True, False), strict=True):
        raw = server.client().chat.completions.with_raw_response.create(
            model=SERVED_NAME, messages=messages, max_tokens=TOKENS, temperature=0, extra_body={"moderation": {}}
        )
        assert raw.headers["x-guardrail-decision"] == "allow"
        assert raw.headers.get("x-guardrail-answer") == header
        said = raw.parse().model_dump()["moderation"]
        assert said["output"]["results"][0]["flagged"] is flagged
        assert said["input"]["results"][0]["flagged"] is False


@pytest.mark.parametrize("route", ["completions", "responses"])
def test_other_routes_end_as_well(server, ended, reference, route):
    """A completion with `content_filter`; a response that is incomplete because of it."""
    prompt = reference.tokenizer.apply_chat_template(ended[0], add_generation_prompt=True, tokenize=False)
    if route == "completions":
        reply = server.client().completions.create(
            model=SERVED_NAME, prompt=prompt, max_tokens=TOKENS, temperature=0, extra_body={"add_special_tokens": False}
        )
        assert reply.choices[0].finish_reason == "content_filter"
        return
    reply = server.client().responses.create(
        model=SERVED_NAME, input=ended[0][-1]["content"], max_output_tokens=TOKENS, temperature=0
    )
    assert reply.usage.output_tokens < TOKENS
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "content_filter")


def test_an_ended_message_is_a_refusal(server, ended):
    """Anthropic's clients see what was said, and `stop_reason` refusal, whole and streamed."""
    question = {"model": SERVED_NAME, "messages": ended[0], "max_tokens": TOKENS, "temperature": 0}
    whole = httpx.post(f"{server.url}/v1/messages", json=question, timeout=60)
    stream = httpx.post(f"{server.url}/v1/messages", json=question | {"stream": True}, timeout=60).text
    events = [json.loads(line.removeprefix("data: ")) for line in stream.split("\n") if line.startswith("data: ")]
    (end,) = [event for event in events if event["type"] == "message_delta"]
    assert whole.json()["stop_reason"] == end["delta"]["stop_reason"] == "refusal"
    assert whole.json()["guardrail"]["answer"] == whole.headers["x-guardrail-answer"] == "block"
    assert 0 < whole.json()["usage"]["output_tokens"] < TOKENS


def test_it_is_counted(server, ended):
    """By decision, with how many tokens there were; answers that cross nothing are in no counter of these."""
    before = server.process.metrics()
    for messages in ended:
        ask(server.client(), messages)
    after = server.process.metrics()

    def more(name):
        return after[name] - before[name]

    assert more('foreguard_answers_total{action="block",mode="enforce"}') == 1
    assert more("foreguard_answer_tokens_count") == 1
    assert 0 < more("foreguard_answer_tokens_sum") < TOKENS
    assert more('foreguard_requests_total{action="allow",mode="enforce"}') == 2
