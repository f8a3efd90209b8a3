"""What the guard answers, on every route, in every style, whole and streamed: its client reads it and can send it
back.
"""

import json
import time

import httpx
import openai
import pytest

from tests.serving.apis import APIS
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, MESSAGE, answer, clearly_harmful, policy_text, steered_prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

FLAGS = (
    "--enforce-eager",
    "--enable-request-id-headers",
    *("--allowed-origins", '["http://page.test"]'),
    *("--sse-keep-alive-interval", "1"),
)
BROWSER = {"origin": "http://page.test", "x-request-id": "abc"}
READY_AGE_S = 6.0
ROUTES = [pytest.param(api, id=api.name) for api in APIS]
STREAMS = [pytest.param(api, id=api.name) for api in APIS if api.event is not None]


def styled(reference, artifact, style, category):
    """The policy of the other tests, in this style, and with a category that clients are told or not."""
    response = f"{{style: {style}, category: {category}, message: {MESSAGE!r}}}"
    text = policy_text(reference, artifact).replace(f"{{message: {MESSAGE!r}}}", response)
    return text.replace("{name: harmful,", "{name: harmful, category: weapons,")


@pytest.fixture(scope="module")
def refusing(start, reference, artifact):
    """A server whose policy refuses, and which stores responses."""
    with start(styled(reference, artifact, "refusal", "true"), *FLAGS, VLLM_ENABLE_RESPONSES_API_STORE="1") as server:
        yield server


@pytest.fixture(scope="module")
def failing(start, reference, artifact):
    """A server whose policy answers with errors, and that notices soon when its engine hangs."""
    with start(styled(reference, artifact, "error", "false"), *FLAGS, FOREGUARD_READY_AGE=str(READY_AGE_S)) as server:
        yield server


@pytest.fixture(scope="module")
def harmful(reference, artifact):
    """A prompt that is blocked."""
    return clearly_harmful(reference, artifact, 1)[0]


@pytest.fixture(scope="module")
def rendered(reference):
    """Return a conversation as the text that the chat template makes of it."""
    return lambda messages: reference.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


def post(server, path, body, **headers):
    """Ask."""
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)


def events(text):
    """The JSON of a stream's events."""
    lines = (line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("api", ROUTES)
def test_a_refusal_parses_strictly_and_is_history(refusing, harmful, rendered, api):
    """The client's own types take it, the message and the reason are in it, and the next request may have it."""
    question = api.ask(harmful, rendered(harmful))
    reply = post(refusing, api.path, question)
    assert (reply.status_code, reply.headers["x-guardrail-decision"]) == (200, "block")
    parsed = api.parse(reply.json())
    assert MESSAGE in reply.text
    assert parsed.model_extra["guardrail"]["category"] == "weapons"
    assert parsed.model_extra["guardrail"]["event_id"] == reply.headers["x-guardrail-event-id"]
    again = post(refusing, api.path, api.follow(question, reply.json()))
    assert again.status_code == 200, again.text


@pytest.mark.parametrize("api", STREAMS)
def test_a_streamed_refusal_parses_strictly_and_is_history(refusing, harmful, rendered, api):
    """Likewise, event by event; one id runs through it, and the last event with content tells what stopped it."""
    question = api.ask(harmful, rendered(harmful))
    reply = post(refusing, api.path, question | {"stream": True})
    assert (reply.status_code, reply.headers["x-guardrail-decision"]) == (200, "block")
    found = events(reply.text)
    assert [api.parse_event(event) for event in found]
    assert reply.text.count('"guardrail"') == 1
    assert len(set(ids(found))) <= 1
    again = post(refusing, api.path, api.follow(question, api.gathered(found)))
    assert again.status_code == 200, again.text


def ids(found):
    """The ids of the answer that a stream's events name."""
    whole = [event.get("response") or event.get("message") or event for event in found]
    return [each["id"] for each in whole if "id" in each]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ROUTES)
def test_an_error_parses_strictly(failing, harmful, rendered, api, stream):
    """HTTP 400 in the client's own form of an error, for streams too; it says what stopped the request, and no
    category.
    """
    reply = post(failing, api.path, api.ask(harmful, rendered(harmful)) | ({"stream": True} if stream else {}))
    if stream and api.event is None:
        assert reply.status_code in (400, 422)
        return
    assert (reply.status_code, reply.headers["x-guardrail-decision"]) == (400, "block")
    api.parse_error(reply.json())
    error = reply.json()["error"]
    assert (error["message"], error["code"], error["type"]) == (MESSAGE, "content_filter", "invalid_request_error")
    assert set(error["guardrail"]) == {"decision", "policy", "event_id"}


@pytest.mark.parametrize("moderated", [{"moderation": {"mode": "block"}}, {"moderation": 5}])
@pytest.mark.parametrize("api", ROUTES)
def test_blocks_and_faults_have_the_headers_of_vllm_s_answers(refusing, harmful, rendered, api, moderated):
    """A browser reads the refusal and the guard's 400, and both have the request's id."""
    reply = post(refusing, api.path, api.ask(harmful, rendered(harmful)) | moderated, **BROWSER)
    allowed = post(refusing, api.path, api.ask(BENIGN[0], rendered(BENIGN[0])), **BROWSER)
    for name in ("access-control-allow-origin", "x-request-id"):
        assert reply.headers[name] == allowed.headers[name]
    assert reply.status_code == (400 if moderated["moderation"] == 5 else 200)
    if reply.status_code == 400:
        api.parse_error(reply.json())


def test_a_blocked_message_is_anthropic_s_refusal(refusing, harmful):
    """`stop_reason` refusal, whole and streamed, and the prompt's tokens in the usage."""
    question = APIS[4].ask(harmful, "")
    whole = post(refusing, "/v1/messages", question).json()
    stream = events(post(refusing, "/v1/messages", question | {"stream": True}).text)
    (end,) = [event for event in stream if event["type"] == "message_delta"]
    assert whole["stop_reason"] == end["delta"]["stop_reason"] == "refusal"
    assert whole["usage"] == end["usage"] == {"input_tokens": whole["usage"]["input_tokens"], "output_tokens": 0}
    assert whole["usage"]["input_tokens"] > 5


def test_a_blocked_response_can_be_fetched_and_continued(refusing, harmful):
    """By its own id, whole and streamed, where vLLM stores responses."""
    question = {"model": SERVED_NAME, "input": harmful, "max_output_tokens": 8, "store": True, "stream_options": "x"}
    whole = post(refusing, "/v1/responses", question).json()
    stream = events(post(refusing, "/v1/responses", question | {"stream": True}).text)[-1]["response"]
    for given in (whole, stream):
        fetched = httpx.get(f"{refusing.url}/v1/responses/{given['id']}", timeout=60)
        assert (fetched.status_code, fetched.json()["status"]) == (200, "completed"), fetched.text
        assert fetched.json()["output"][0]["content"][0]["text"] == MESSAGE
        further = {"model": SERVED_NAME, "input": "What is a cat?", "previous_response_id": given["id"]}
        assert post(refusing, "/v1/responses", further | {"max_output_tokens": 8}).status_code == 200
        assert given["output"][0]["id"].startswith("msg_")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("stopped", ["blocked", "steered"])
def test_an_echo_of_a_stopped_prompt_shows_no_number_of_the_model_s(
    refusing, reference, artifact, harmful, rendered, stopped, max_tokens, stream
):
    """Alone or beside another prompt: each of its tokens is there, with numbers that say nothing and can be added
    up.
    """
    text = rendered(harmful if stopped == "blocked" else steered_prompt(reference, artifact))
    for prompts in ([text], [rendered(BENIGN[0]), text]):
        question = {"model": SERVED_NAME, "prompt": prompts, "echo": True, "logprobs": 5, "max_tokens": max_tokens}
        reply = post(refusing, "/v1/completions", question | {"stream": stream})
        found = events(reply.text) if stream else [reply.json()]
        choices = [choice for each in found for choice in each["choices"] if choice["index"] == len(prompts) - 1]
        logprobs = choices[0]["logprobs"]
        numbers = len(reference.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert len({len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
        assert set(logprobs["token_logprobs"][:numbers]) == {-9999.0}
        assert all(list(top.values()) == [-9999.0] for top in logprobs["top_logprobs"][:numbers])
        assert "".join(logprobs["tokens"][:numbers]) == text
        assert choices[0]["text"].startswith(text)
        # Who asks for no token gets the prompt alone.
        assert (MESSAGE in choices[0]["text"]) is (stopped == "blocked" and max_tokens > 0)


@pytest.mark.parametrize("stopped", ["blocked", "steered"])
def test_prompt_logprobs_of_a_stopped_prompt_are_null(refusing, reference, artifact, harmful, rendered, stopped):
    """The last position's would be the answer that the policy keeps back; a companion's stay."""
    text = rendered(harmful if stopped == "blocked" else steered_prompt(reference, artifact))
    question = {"model": SERVED_NAME, "prompt": [rendered(BENIGN[0]), text], "prompt_logprobs": 1, "max_tokens": 1}
    companion, hidden = post(refusing, "/v1/completions", question).json()["choices"]
    assert hidden["prompt_logprobs"] == [None] * len(hidden["prompt_logprobs"])
    assert len(hidden["prompt_logprobs"]) == len(reference.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert all(companion["prompt_logprobs"][1:])


def test_the_event_id_is_in_the_log(refusing, harmful):
    """One line of JSON, with the header's id and nothing of the prompt."""
    reply = post(refusing, "/v1/chat/completions", APIS[0].ask(harmful, ""))
    event_id = reply.headers["x-guardrail-event-id"]
    (line,) = [line for line in refusing.log.read_text().splitlines() if event_id in line]
    found = json.loads(line[line.index("{") :])
    assert (found["event_id"], found["decision"], found["rule"], found["category"]) == (
        event_id,
        "block",
        "harmful",
        "weapons",
    )
    assert (found["request_id"], found["route"]) == (reply.json()["id"], "/v1/chat/completions")
    assert harmful[-1]["content"] not in line


@pytest.mark.parametrize(("kind", "decision"), [("harmful", "block"), ("benign", "allow")])
def test_a_stream_that_waits_is_kept_alive(refusing, harmful, kind, decision):
    """Comments pass at once, under headers that promise nothing; the stream then tells the verdict, and is whole."""
    messages = harmful if kind == "harmful" else BENIGN[1]
    body, url = APIS[0].ask(messages, "") | {"stream": True}, f"{refusing.url}/v1/chat/completions"
    with refusing.engine_stopped() as go_on, httpx.stream("POST", url, json=body, timeout=60) as reply:
        assert reply.headers["x-guardrail-decision"] == "pending"
        go_on()
        lines = list(reply.iter_lines())
    assert lines[0] == ": keep-alive"
    assert lines[-2] == "data: [DONE]"
    chunks = [APIS[0].parse_event(event) for event in events("\n".join(lines))]
    (told,) = [chunk.model_extra["guardrail"] for chunk in chunks if "guardrail" in chunk.model_extra]
    assert told["decision"] == decision
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert (text == MESSAGE) is (kind == "harmful")


def test_an_error_ends_a_stream_that_was_kept_alive(failing, harmful):
    """OpenAI's client raises it, as it raises the 400."""
    with failing.engine_stopped() as go_on:
        stream = failing.client().chat.completions.create(model=SERVED_NAME, messages=harmful, stream=True)
        go_on()
        with pytest.raises(openai.APIError, match=MESSAGE) as caught:
            list(stream)
    assert caught.value.code == "content_filter"


def test_readiness_turns_while_the_engine_hangs(failing):
    """`/health` stays 200 all the while; `/guard/ready` and the metric tell, and turn back when the engine goes on."""

    def ready():
        return httpx.get(f"{failing.url}/guard/ready", timeout=10)

    def wait_for(status):
        end = time.monotonic() + 10 * READY_AGE_S
        while (reply := ready()).status_code != status and time.monotonic() < end:
            time.sleep(0.2)
        assert reply.status_code == status, reply.text
        return reply

    wait_for(200)
    with failing.engine_stopped():
        unready = wait_for(503).json()
        assert unready["ready"] is False
        assert "did not answer a canary" in unready["reason"]
        assert httpx.get(f"{failing.url}/health", timeout=10).status_code == 200
        time.sleep(READY_AGE_S)
        assert failing.metric("foreguard_ready") == 0
        assert time.time() - failing.metric("foreguard_last_scored_timestamp_seconds") > READY_AGE_S
    assert wait_for(200).json()["ready"] is True
    assert answer(failing.client(), BENIGN[0])
    assert failing.metric("foreguard_ready") == 1
