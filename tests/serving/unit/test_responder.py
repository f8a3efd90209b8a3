"""One answer is held until it is decided, then let go as it is, marked, or replaced as a whole."""

import json

import numpy as np
import pytest
from openai.types.chat import ChatCompletionChunk

from guard.decide import bind
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.verdict import Action, Mode, Unscored, Verdict
from serving.api.exchange import Exchange, Prompt
from serving.api.responder import Responder
from serving.api.routes import ROUTES

RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 1}}}
JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


def policies(**settings):
    """A policy of one rule, with these sections."""
    policy = Policy.model_validate({"name": "p", "version": "1", "rules": [RULE]} | settings)
    return PolicySet(bind(policy, ["harm"], np.zeros((0, 1), dtype=np.float32)))


POLICIES = policies()


def verdict(action=Action.ALLOW, **changes):
    """A verdict that acted."""
    return Verdict(action, action, Mode.ENFORCE, {"harm": 1.5}, "p@1", "fge_1", **changes)


def passed(n=1, **changes):
    """A prompt that got through."""
    return Prompt("chatcmpl-1", n, POLICIES, verdict=verdict(), num_tokens=3, passed=True, **changes)


def blocked(n=1, indices=(0,), **changes):
    """A prompt of which some completions were blocked."""
    return Prompt(
        "chatcmpl-1", n, POLICIES, verdict=verdict(Action.BLOCK), num_tokens=3, blocked=set(indices), **changes
    )


class Answer:
    """A responder with a record of what reached the client."""

    def __init__(self, *prompts, style="refusal", category=False, route="/v1/chat/completions", **exchange):
        response = {"style": style, "message": "Nein – „so nicht“.", "category": category}
        self.exchange = Exchange(policies(response=response), prompts=list(prompts), created=1700000000, **exchange)
        self.sent = []
        self.responder = Responder(self._record, ROUTES[route], self.exchange, "served")

    async def _record(self, message):
        self.sent.append(message)

    async def start(self, headers=JSON, status=200):
        """The app begins its answer."""
        await self.responder.send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def body(self, body=b"", more=False):
        """The app sends a part of its answer."""
        await self.responder.send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def text(self):
        return b"".join(message["body"] for message in self.sent[1:]).decode()

    def check_framing(self):
        """Exactly one start, then bodies of which only the last is final, and a true content length."""
        assert [message["type"] for message in self.sent] == ["http.response.start"] + ["http.response.body"] * (
            len(self.sent) - 1
        )
        finals = [not message.get("more_body", False) for message in self.sent[1:]]
        assert finals == [False] * (len(finals) - 1) + [True]
        if "content-length" in self.headers:
            assert int(self.headers["content-length"]) == len(self.text.encode())


async def test_allowed_bytes_are_untouched():
    """The body passes byte for byte and the app's headers stay; three headers of ours are added."""
    answer = Answer(passed())
    raw = b'{"a":  1, "\xc3\xa9": [ ] }\n'
    await answer.start([*JSON, (b"content-length", str(len(raw)).encode()), (b"x-own", b"1")])
    await answer.body(raw)
    answer.check_framing()
    assert answer.text.encode() == raw
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(raw)),
        "x-own": "1",
        "x-guardrail-decision": "allow",
        "x-guardrail-policy": "p@1",
        "x-guardrail-event-id": "fge_1",
    }


async def test_held_until_decided():
    """Not a byte leaves before every prompt has its verdict, however much the app has sent; then all of it, in
    order.
    """
    waiting = Prompt("chatcmpl-1", 1, POLICIES)
    answer = Answer(waiting)
    await answer.start(SSE)
    await answer.body(b"data: 1\n\n", more=True)
    await answer.body(b"data: 2\n\n", more=True)
    assert answer.sent == []
    waiting.verdict, waiting.passed = verdict(), True
    await answer.body(b"data: 3\n\n", more=True)
    await answer.body(b"data: [DONE]\n\n", more=True)
    await answer.body()
    answer.check_framing()
    assert answer.text == "data: 1\n\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n"


async def test_a_stream_that_was_held_can_still_be_replaced():
    """The first event, which vLLM sends before any token, was held, so the refusal is a whole stream of its own."""
    waiting = Prompt("chatcmpl-1", 1, POLICIES)
    answer = Answer(waiting)
    await answer.start(SSE)
    await answer.body(b'data: {"role": "assistant"}\n\n', more=True)
    waiting.verdict, waiting.blocked = verdict(Action.BLOCK), {0}
    await answer.body(b"data: SECRET\n\n", more=True)
    await answer.body(b"data: SECRET\n\n", more=True)
    await answer.body()
    answer.check_framing()
    assert "SECRET" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "content-length" not in answer.headers


@pytest.mark.parametrize(
    ("route", "kind"),
    [
        ("/v1/chat/completions", "chat.completion"),
        ("/v1/completions", "text_completion"),
        ("/v1/responses", "response"),
    ],
)
async def test_blocked_json(route, kind):
    """The body is built anew: status 200, right length whatever the message's alphabet; the app's other headers
    stay.
    """
    answer = Answer(blocked(), route=route)
    await answer.start([*JSON, (b"content-length", b"6"), (b"x-own", b"1")], status=500)
    await answer.body(b"SECRET")
    answer.check_framing()
    content = json.loads(answer.text)
    assert (answer.status, content["object"], content["model"], content["id"]) == (200, kind, "served", "chatcmpl-1")
    assert "Nein – „so nicht“." in answer.text
    assert answer.headers["x-guardrail-decision"] == "block"
    assert answer.headers["x-own"] == "1"
    assert [name.lower() for name, _ in answer.sent[0]["headers"]].count(b"content-length") == 1


@pytest.mark.parametrize("headers", [JSON, SSE])
@pytest.mark.parametrize(
    ("route", "param"),
    [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt"), ("/v1/responses", "input")],
)
async def test_error_style(route, param, headers):
    """HTTP 400 with OpenAI's envelope, for streams too, because no byte of the stream has left."""
    answer = Answer(blocked(), style="error", route=route)
    await answer.start(headers)
    await answer.body(b"SECRET", more=True)
    await answer.body()
    answer.check_framing()
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-guardrail-decision"] == "block"
    error = json.loads(answer.text)["error"]
    assert (error["code"], error["param"], error["type"]) == ("content_filter", param, "invalid_request_error")
    assert error["message"] == "Nein – „so nicht“."


@pytest.mark.parametrize("style", ["refusal", "error"])
async def test_messages_after_a_replacement_are_swallowed(style):
    """Whatever the app goes on to send, the client has its complete answer and gets no second one."""
    answer = Answer(blocked(), style=style)
    await answer.start(SSE)
    await answer.body(b"x", more=True)
    before = list(answer.sent)
    await answer.body(b"y", more=True)
    await answer.body()
    await answer.start()
    assert answer.sent == before
    answer.check_framing()


async def test_mixed_n_passes_in_refusal_style():
    """One of two completions blocked: vLLM's own answer already holds the message in its place, so it passes."""
    answer = Answer(blocked(n=2, passed=True))
    await answer.start()
    await answer.body(b'{"choices": []}')
    answer.check_framing()
    assert json.loads(answer.text)["choices"] == []
    assert answer.headers["x-guardrail-decision"] == "block"


async def test_mixed_n_is_an_error_in_error_style():
    """The operator asked for an error whenever something was blocked."""
    answer = Answer(blocked(n=2, passed=True), style="error")
    await answer.start()
    await answer.body(b'{"choices": []}')
    assert answer.status == 400


async def test_refusal_has_every_choice_of_every_prompt():
    """Two prompts with n = 2: four choices, numbered through, and the tokens of both."""
    answer = Answer(blocked(n=2, indices=(0, 1)), blocked(n=2, indices=(0, 1)), route="/v1/completions")
    await answer.start()
    await answer.body(b"{}")
    content = json.loads(answer.text)
    assert [choice["index"] for choice in content["choices"]] == [0, 1, 2, 3]
    assert content["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize("expected", [True, False])
async def test_usage_of_a_refused_stream(expected):
    """The usage chunk comes if the exchange asks for it."""
    answer = Answer(blocked(), wants_usage=expected)
    await answer.start(SSE)
    await answer.body(b"x")
    assert ('"usage"' in answer.text) is expected


async def test_the_adapter_s_name_answers():
    """A LoRA adapter that was asked for is the model of the refusal."""
    prompt = blocked()
    prompt.model = "tuned"
    answer = Answer(prompt)
    await answer.start()
    await answer.body(b"{}")
    assert json.loads(answer.text)["model"] == "tuned"


async def test_answers_without_a_prompt_pass_unmarked():
    """Refused by vLLM before any prompt reached the engine: its own 400 passes, with no claim by the guard."""
    answer = Answer()
    await answer.start(status=400)
    await answer.body(b'{"error": 1}')
    assert (answer.status, answer.text, list(answer.headers)) == (400, '{"error": 1}', ["content-type"])


@pytest.mark.parametrize("raw", [b'{"id":"a","choices":[]}', '{"id":"é"}'.encode()])
async def test_moderation_is_added_with_the_right_length(raw):
    """The object is added to vLLM's JSON, whose other keys stay, and the content length is that of the new body."""
    answer = Answer(passed(), wants_moderation=True)
    await answer.start([*JSON, (b"Content-Length", str(len(raw)).encode())])
    await answer.body(raw)
    answer.check_framing()
    content = json.loads(answer.text)
    moderation = content.pop("moderation")
    assert content == json.loads(raw)
    assert moderation["input"]["results"][0]["flagged"] is False
    assert moderation["input"]["results"][0]["category_scores"] == {}
    assert [name for name, _ in answer.sent[0]["headers"] if name.lower() == b"content-length"] == [b"content-length"]


@pytest.mark.parametrize("cuts", [(), (4,), (4, 9)])
async def test_moderation_of_json_that_comes_in_parts(cuts):
    """A middleware inside (vLLM's `--middleware my.function` is one) may send JSON in parts and an empty end."""
    raw = b'{"id":"a","choices":[]}'
    answer = Answer(passed(), wants_moderation=True)
    await answer.start()
    for start, end in zip((0, *cuts), (*cuts, len(raw)), strict=True):
        await answer.body(raw[start:end], more=True)
    await answer.body()
    answer.check_framing()
    assert json.loads(answer.text)["moderation"]["output"]["code"] == "not_evaluated"


async def test_moderation_shows_scores_to_those_who_may_see_them():
    """`sees_scores` is the only key to them."""
    answer = Answer(passed(), wants_moderation=True, sees_scores=True)
    await answer.start()
    await answer.body(b"{}")
    assert json.loads(answer.text)["moderation"]["input"]["results"][0]["category_scores"] == {"harm": 1.5}


async def test_moderation_of_a_blocked_answer():
    """A refusal says flagged."""
    answer = Answer(blocked(), wants_moderation=True)
    await answer.start()
    await answer.body(b"{}")
    answer.check_framing()
    assert json.loads(answer.text)["moderation"]["input"]["results"][0]["flagged"] is True


async def test_errors_of_vllm_get_no_moderation():
    """An error stays the error that it was."""
    answer = Answer(passed(), wants_moderation=True)
    await answer.start(status=500)
    await answer.body(b"not json")
    assert answer.text == "not json"


@pytest.mark.parametrize("prompts", [[passed()], [blocked()]], ids=["passed", "blocked"])
async def test_moderation_chunk_of_a_chat_stream(prompts):
    """One chunk of the stream carries the object, and is a `chat.completion.chunk` as any client expects it."""
    answer = Answer(*prompts, wants_moderation=True)
    await answer.start(SSE)
    await answer.body(b"data: [DONE]\n\n", more=True)
    await answer.body()
    answer.check_framing()
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line and "[DONE]" not in line]
    chunks = [ChatCompletionChunk.model_validate_json(event) for event in events]
    carried = [chunk.moderation for chunk in chunks if chunk.moderation]
    assert [moderation.output.code for moderation in carried] == ["not_evaluated"]
    assert {chunk.id for chunk in chunks} == {"chatcmpl-1"}


async def test_moderation_of_a_responses_stream():
    """The Responses API has typed events only: the stream opens with `response.created`; the response holds the
    object.
    """
    answer = Answer(blocked(), wants_moderation=True, route="/v1/responses")
    await answer.start(SSE)
    await answer.body(b"x")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n") if line.startswith("data: ")]
    assert events[0].get("type") == "response.created"
    assert events[-1]["response"]["moderation"]["output"]["code"] == "not_evaluated"


async def test_unscored_but_let_through_is_said():
    """Where the policy lets prompts without a score pass, the header says that this is what happened."""
    prompt = passed()
    prompt.verdict = verdict(unscored=Unscored.MISSING)
    answer = Answer(prompt)
    await answer.start()
    await answer.body(b"{}")
    assert answer.headers["x-guardrail-decision"] == "unscored"


async def test_policy_names_are_all_that_headers_tell():
    """No score, threshold or rule leaves in a header."""
    answer = Answer(blocked())
    await answer.start()
    await answer.body(b"{}")
    assert {name for name in answer.headers if name.startswith("x-guardrail")} == {
        "x-guardrail-decision",
        "x-guardrail-policy",
        "x-guardrail-event-id",
    }
    assert "1.5" not in str(answer.sent)


@pytest.mark.parametrize("style", ["refusal", "error"])
@pytest.mark.parametrize("headers", [JSON, SSE])
async def test_a_blocked_answer_keeps_the_headers_of_the_app_s_own(style, headers):
    """A request id, or whatever else a middleware inside had put there, reaches the client of a refusal too."""
    answer = Answer(blocked(), style=style)
    await answer.start([*headers, (b"X-Request-Id", b"abc"), (b"content-length", b"1")])
    await answer.body(b"x")
    answer.check_framing()
    assert {name.lower(): value for name, value in answer.headers.items()}["x-request-id"] == "abc"


OWN = {
    "/v1/chat/completions": {"id": "chatcmpl-own", "object": "chat.completion", "created": 17},
    "/v1/chat/completions/batch": {"id": "chatcmpl-own", "object": "chat.completion", "created": 17},
    "/v1/completions": {"id": "cmpl-own", "object": "text_completion", "created": 17},
    "/v1/responses": {"id": "resp_own", "object": "response", "created_at": 17},
    "/v1/messages": {"id": "chatcmpl-own", "type": "message"},
}


@pytest.mark.parametrize("route", OWN)
async def test_the_id_is_the_answer_s_own(route):
    """Not that of the engine's request, which vLLM numbers: by the answer's own id it can be fetched and continued."""
    prompt = blocked()
    prompt.request_id = "sub-request_0"
    answer = Answer(prompt, route=route)
    await answer.start()
    await answer.body(json.dumps(OWN[route]).encode())
    assert json.loads(answer.text)["id"] == OWN[route]["id"]


async def test_the_id_of_a_stream_is_its_own():
    """The first event of vLLM's stream tells it; in a Responses stream within the response."""
    for route, event in (
        ("/v1/completions", OWN["/v1/completions"]),
        ("/v1/responses", {"response": OWN["/v1/responses"]}),
    ):
        answer = Answer(blocked(), route=route)
        await answer.start(SSE)
        await answer.body(b"event: e\ndata: " + json.dumps(event).encode() + b"\n\n", more=True)
        assert OWN[route]["id"] in answer.text
        assert "chatcmpl-1" not in answer.text


@pytest.mark.parametrize(("kind", "key"), [("chat.completion", "message"), ("text_completion", "text")])
async def test_sagemaker_s_route_speaks_as_the_route_that_answered(kind, key):
    """`/invocations` is a chat or a completions request, as vLLM takes it: its own answer tells which."""
    answer = Answer(blocked(), route="/invocations")
    await answer.start()
    await answer.body(json.dumps({"id": "x", "object": kind}).encode())
    content = json.loads(answer.text)
    assert (content["object"], key in content["choices"][0]) == (kind, True)


@pytest.mark.parametrize("category", [True, False])
async def test_the_body_tells_what_stopped_it(category):
    """Who sees no headers finds the decision, policy and event in the body, and the category if the policy says so."""
    for style in ("refusal", "error"):
        prompt = blocked()
        prompt.verdict = verdict(Action.BLOCK, category="weapons", rule="secret-rule")
        answer = Answer(prompt, style=style, category=category)
        await answer.start()
        await answer.body(b"{}")
        content = json.loads(answer.text)
        told = (content if style == "refusal" else content["error"])["guardrail"]
        expected = {"decision": "block", "policy": "p@1", "event_id": "fge_1"}
        assert told == expected | ({"category": "weapons"} if category else {})
        assert "secret-rule" not in answer.text


async def test_a_partly_blocked_answer_tells_it_too():
    """The body is vLLM's own, whole or streamed: it has the entry where something in it was blocked, and only there."""
    for headers, raw in ((JSON, b'{"id":"a"}'), (SSE, b'data: {"id":"a"}\n\n')):
        for prompt, told in ((blocked(n=2, passed=True), True), (passed(), False)):
            answer = Answer(prompt)
            await answer.start(headers)
            await answer.body(raw)
            answer.check_framing()
            assert ('"guardrail":{"decision":"block"' in answer.text) is told
            assert told or answer.text.encode() == raw


async def test_an_echo_stays_vllm_s_own():
    """Its tokens and their offsets are vLLM's to tell: the body that it made passes, with the entry of the guard."""
    answer = Answer(blocked(), route="/v1/completions", wants_echo=True)
    raw = {"id": "cmpl-own", "choices": [{"text": "prompt and message", "logprobs": {"tokens": ["prompt"]}}]}
    await answer.start()
    await answer.body(json.dumps(raw).encode())
    answer.check_framing()
    content = json.loads(answer.text)
    assert content.pop("guardrail")["decision"] == "block"
    assert content == raw


async def test_an_echo_that_a_route_does_not_know_changes_nothing():
    """On a chat route no client gets around the guard's own body by asking for an echo."""
    answer = Answer(blocked(), wants_echo=True)
    await answer.start()
    await answer.body(b'{"id":"a","choices":[{"message":{"content":"bent by a parser"}}]}')
    assert "bent" not in answer.text
    assert json.loads(answer.text)["choices"][0]["message"]["refusal"]


COMMENT = b": keep-alive\n\n"


async def kept_alive(*prompts, **options):
    """A stream whose headers left with a comment, while it waited."""
    answer = Answer(*prompts, **options)
    await answer.start(SSE)
    verdicts = [(prompt, prompt.passed, prompt.blocked) for prompt in prompts]
    for prompt in prompts:
        prompt.passed, prompt.blocked = False, set()
    await answer.body(COMMENT, more=True)
    await answer.body(COMMENT, more=True)
    assert answer.text.encode() == COMMENT * 2
    for prompt, has_passed, is_blocked in verdicts:
        prompt.passed, prompt.blocked = has_passed, is_blocked
    return answer


async def test_comments_pass_while_a_stream_waits():
    """They carry no token: the status leaves with the first one, the decision is pending, and the stream tells it."""
    answer = await kept_alive(passed())
    await answer.body(b'data: {"id":"a"}\n\n', more=True)
    await answer.body(b"data: [DONE]\n\n")
    answer.check_framing()
    assert answer.headers["x-guardrail-decision"] == "pending"
    assert "x-guardrail-event-id" not in answer.headers
    first, done = answer.text.removeprefix(COMMENT.decode() * 2).split("\n\n")[:2]
    told = {"decision": "allow", "policy": "p@1", "event_id": "fge_1"}
    assert json.loads(first.removeprefix("data: ")) == {"id": "a", "guardrail": told}
    assert done == "data: [DONE]"


async def test_a_stream_that_was_kept_alive_can_still_be_refused():
    """The refusal follows the comments, and nothing of the model's does."""
    answer = await kept_alive(blocked())
    await answer.body(b'data: {"id":"a","x":"SECRET"}\n\n', more=True)
    await answer.body()
    answer.check_framing()
    assert (answer.status, "SECRET" in answer.text) == (200, False)
    assert '"finish_reason":"content_filter"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_a_stream_that_was_kept_alive_ends_with_the_error(route):
    """Its status has left, so in style `error` the error is an event of the stream, as the route has it."""
    answer = await kept_alive(blocked(), style="error", route=route)
    await answer.body(b'data: {"id":"a","x":"SECRET"}\n\n', more=True)
    answer.check_framing()
    assert (answer.status, "SECRET" in answer.text) == (200, False)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
    (content,) = map(json.loads, events)
    error = content.get("error", content)
    assert (error["code"], error["message"]) == ("content_filter", "Nein – „so nicht“.")
    assert ("event: error" in answer.text) is (route in ("/v1/responses", "/v1/messages"))


@pytest.mark.parametrize("text", [b"", b"\n\n", b'data: {"a":1}\n\n', b': a\n\ndata: {"a":1}\n\n'])
async def test_only_comments_pass(text):
    """Whatever else a message holds waits for the verdict."""
    answer = Answer(Prompt("chatcmpl-1", 1, POLICIES))
    await answer.start(SSE)
    await answer.body(text, more=True)
    assert answer.sent == []


def ended(**options):
    """A prompt that passed, and whose answer was ended in its middle."""
    return passed(answer=verdict(Action.BLOCK), **options)


async def test_a_message_that_is_ended_in_its_middle_is_a_refusal():
    """Otherwise vLLM leaves out the stop reason, which it does not know: Anthropic's clients would see an unfinished
    turn.
    """
    whole = Answer(ended(), route="/v1/messages")
    await whole.start()
    await whole.body(b'{"id":"m","content":[]}')
    assert json.loads(whole.text)["stop_reason"] == "refusal"
    stream = Answer(ended(), route="/v1/messages")
    await stream.start(SSE)
    for event in ({"type": "message_start"}, {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {}}):
        await stream.body(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode(), more=True)
    await stream.body()
    stream.check_framing()
    assert '"stop_reason":"refusal"' in stream.text
    assert "event: message_delta\n" in stream.text


async def test_a_response_that_is_ended_in_its_middle_is_incomplete():
    """VLLM takes it for complete: the answer and the last event of a stream say what the Responses API has for it."""
    whole = Answer(ended(), route="/v1/responses")
    await whole.start()
    await whole.body(b'{"id":"resp_1","status":"completed","output":[]}')
    stream = Answer(ended(), route="/v1/responses")
    await stream.start(SSE)
    for kind in ("response.created", "response.completed"):
        event = {"type": kind, "sequence_number": 3, "response": {"id": "resp_1", "status": "completed"}}
        await stream.body(f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode(), more=True)
    await stream.body()
    stream.check_framing()
    assert "event: response.incomplete\n" in stream.text
    last = json.loads(stream.text.rstrip().rpartition("data: ")[2])
    for response in (json.loads(whole.text), last["response"]):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "content_filter"}


@pytest.mark.parametrize("style", ["refusal", "error"])
async def test_a_later_turn_of_a_response_that_is_blocked(style):
    """A response with built-in tools is several prompts: it is incomplete, or an error, and its headers say block."""
    answer = Answer(passed(), blocked(), route="/v1/responses", style=style)
    own = {"id": "resp_1", "object": "response", "status": "completed", "output": [{"type": "mcp_call"}]}
    await answer.start()
    await answer.body(json.dumps(own).encode())
    content = json.loads(answer.sent[1]["body"])
    assert answer.headers["x-guardrail-decision"] == "block"
    if style == "error":
        assert (answer.status, content["error"]["code"]) == (400, "content_filter")
    else:
        assert (content["status"], content["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
        assert (content["output"], content["guardrail"]["decision"]) == (own["output"], "block")


async def test_a_later_turn_of_a_streamed_response_that_is_blocked():
    """What has left stays said; the last event says that the response is incomplete."""
    answer = Answer(passed(), route="/v1/responses")
    own = {"id": "resp_1", "object": "response", "status": "completed", "output": []}
    await answer.start(SSE)
    await answer.body(b'event: response.created\ndata: {"type": "response.created", "response": {}}\n\n', more=True)
    answer.exchange.prompts.append(blocked())
    last = json.dumps({"type": "response.completed", "sequence_number": 9, "response": own})
    await answer.body(f"event: response.completed\ndata: {last}\n\n".encode())
    head, data = answer.sent[-1]["body"].decode().split("\n")[:2]
    ended = json.loads(data.removeprefix("data: "))
    assert (head, ended["type"], ended["sequence_number"]) == ("event: response.incomplete", "response.incomplete", 9)
    assert ended["response"]["incomplete_details"] == {"reason": "content_filter"}
