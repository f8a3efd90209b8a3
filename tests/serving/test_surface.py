"""What clients see on every route, streamed and not, through the official client."""

import asyncio

import httpx
import openai
import pytest

from tests.serving.server import SERVED_NAME, hang_up
from tests.serving.world import BENIGN, MESSAGE, OBSERVER_KEY, TOKENS, answer, key

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    # The server of `test_invariants.py`, which is at work already.
    pytest.mark.parametrize("here", ["compiled"], indirect=True),
]


def text(messages: list[dict]) -> str:
    return messages[-1]["content"]


def test_chat_says_that_it_was_blocked(here):
    """Finish reason, content, refusal, usage and headers, as the API has them."""
    raw = here.client.chat.completions.with_raw_response.create(model=SERVED_NAME, messages=here.harmful[0])
    choice = raw.parse().choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.refusal) == (
        "content_filter",
        MESSAGE,
        MESSAGE,
    )
    assert raw.headers["x-guardrail-decision"] == "block"
    assert raw.headers["x-guardrail-policy"] == "enforce@2"
    assert raw.headers["x-guardrail-event-id"].startswith("fge_")


def test_a_blocked_chat_stream_is_a_whole_stream(here):
    """Role, content, finish reason, usage, [DONE]: in that order, and nothing else."""
    with here.client.chat.completions.with_streaming_response.create(
        model=SERVED_NAME, messages=here.harmful[0], stream=True, stream_options={"include_usage": True}
    ) as raw:
        lines = [line for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    stream = here.client.chat.completions.create(
        model=SERVED_NAME, messages=here.harmful[0], stream=True, stream_options={"include_usage": True}
    )
    opening, closing, usage = list(stream)
    assert (opening.choices[0].delta.role, opening.choices[0].delta.content) == ("assistant", MESSAGE)
    assert opening.choices[0].delta.refusal == MESSAGE
    assert closing.choices[0].finish_reason == "content_filter"
    assert usage.usage.completion_tokens == 0


def test_an_allowed_stream_has_the_headers_and_the_whole_answer(here):
    """The decision is in the headers before the first chunk; the chunks add up to the unguarded answer."""
    with here.client.chat.completions.with_streaming_response.create(
        model=SERVED_NAME, messages=BENIGN[0], stream=True, max_tokens=TOKENS, temperature=0
    ) as raw:
        assert raw.headers["x-guardrail-decision"] == "allow"
        pieces = [chunk.choices[0].delta.content or "" for chunk in raw.parse()]
    assert "".join(pieces) == here.unguarded[key(BENIGN[0])]


def test_every_choice_of_a_blocked_request_is_blocked(here):
    """With n=3 there are three refusals."""
    reply = here.client.chat.completions.create(model=SERVED_NAME, messages=here.harmful[0], n=3)
    assert [(choice.index, choice.finish_reason) for choice in reply.choices] == [
        (i, "content_filter") for i in range(3)
    ]


def test_completions_block_each_prompt_for_itself(here):
    """Of several prompts in one request the harmful one is blocked and the others are answered."""
    harmful = here.server.client()
    prompts = [here.rendered(BENIGN[0]), here.rendered(here.harmful[0]), here.rendered(BENIGN[1])]
    reply = harmful.completions.create(model=SERVED_NAME, prompt=prompts, max_tokens=TOKENS, temperature=0)
    assert [choice.finish_reason == "content_filter" for choice in reply.choices] == [False, True, False]
    assert reply.choices[1].text == MESSAGE
    assert reply.choices[0].text == here.unguarded[key(BENIGN[0])]
    assert reply.choices[2].text == here.unguarded[key(BENIGN[1])]


@pytest.mark.parametrize("stream", [False, True])
def test_completions_say_that_they_were_blocked(here, stream):
    """The text completion of a blocked prompt is the operator's message."""
    prompt = here.rendered(here.harmful[0])
    reply = here.client.completions.create(model=SERVED_NAME, prompt=prompt, max_tokens=TOKENS, stream=stream)
    choices = [chunk.choices[0] for chunk in reply] if stream else reply.choices
    assert "".join(choice.text for choice in choices) == MESSAGE
    assert choices[-1].finish_reason == "content_filter"


def test_responses_are_incomplete_because_of_the_content_filter(here):
    """The Responses API has a status, a reason and a refusal part for this."""
    reply = here.client.responses.create(model=SERVED_NAME, input=text(here.harmful[0]))
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "content_filter")
    assert reply.output[0].content[0].refusal == MESSAGE
    assert reply.usage.output_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_stop_string_ends_has_its_verdict(here, stream):
    """The engine does not know of the end that the API server finds: the verdict is there all the same, and counted."""

    def counted() -> tuple[float, float]:
        metric = here.server.metric
        return metric("foreguard_requests_total"), metric("foreguard_unscored_total", reason="aborted")

    decided, aborted = counted()
    stop = here.unguarded[key(BENIGN[0])][8]
    raw = here.client.chat.completions.with_raw_response.create(
        model=SERVED_NAME, messages=BENIGN[0], max_tokens=TOKENS, temperature=0, stop=[stop], stream=stream
    )
    parts = list(raw.parse()) if stream else [raw.parse()]
    assert parts[-1].choices[0].finish_reason == "stop"
    assert raw.headers["x-guardrail-decision"] == "allow"
    assert counted() == (decided + 1, aborted)


@pytest.mark.parametrize("max_tokens", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_a_steered_prompt_is_echoed_without_its_log_probabilities(here, max_tokens, stream):
    """The pass that gave them was not steered. The echo has its tokens all the same, and the answer its own numbers."""
    prompt = here.rendered(here.steered)
    options = {"model": SERVED_NAME, "prompt": prompt, "echo": True, "logprobs": 1, "temperature": 0}
    unsteered = here.server.client(OBSERVER_KEY).completions.create(
        max_tokens=1, extra_body={"moderation": {"mode": "score"}}, **options
    )
    expected = unsteered.choices[0].logprobs.tokens[:-1]
    raw = here.client.completions.with_raw_response.create(max_tokens=max_tokens, stream=stream, **options)
    assert raw.headers["x-guardrail-decision"] == "steer"
    chunks = list(raw.parse()) if stream else [raw.parse()]
    tokens = [each for chunk in chunks for each in chunk.choices[0].logprobs.tokens]
    found = [each for chunk in chunks for each in chunk.choices[0].logprobs.token_logprobs]
    assert tokens[: len(expected)] == expected
    assert len(found) == len(expected) + max_tokens
    assert set(found[: len(expected)]) == {-9999.0}
    assert all(-50 < each <= 0 for each in found[len(expected) :])


def test_a_blocked_responses_stream_ends_incomplete(here):
    """The events of a refusal, in the official client's own stream reader."""
    with here.client.responses.stream(model=SERVED_NAME, input=text(here.harmful[0])) as stream:
        events = list(stream)
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.incomplete"
    assert "".join(event.delta for event in events if event.type == "response.refusal.delta") == MESSAGE


def test_responses_answer_what_is_allowed(here):
    """A benign input passes, streamed and not, with the same text."""
    whole = here.client.responses.create(
        model=SERVED_NAME, input=text(BENIGN[0]), max_output_tokens=TOKENS, temperature=0
    )
    with here.client.responses.stream(
        model=SERVED_NAME, input=text(BENIGN[0]), max_output_tokens=TOKENS, temperature=0
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == whole.output_text == here.unguarded[key(BENIGN[0])]


def test_a_client_may_tighten(here):
    """With `moderation: {mode: block}` a request that would be steered is blocked, and the verdict is in the body."""
    reply = here.client.chat.completions.create(
        model=SERVED_NAME, messages=here.steered, extra_body={"moderation": {"model": "any", "mode": "block"}}
    )
    assert reply.choices[0].finish_reason == "content_filter"
    judged = reply.model_dump()["moderation"]
    assert judged["input"]["results"][0]["flagged"] is True
    assert judged["output"]["code"] == "not_evaluated"


@pytest.mark.parametrize(
    "loosening",
    [
        {"moderation": {"mode": "score"}},
        {"vllm_xargs": {"foreguard": "shadow"}},
        {"vllm_xargs": {"foreguard": {"shadow": True}}},
        {"kv_transfer_params": {"foreguard": {"action": "allow"}}},
        {"min_tokens": 8, "ignore_eos": True},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": [MESSAGE]},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_nothing_that_a_client_sends_loosens_the_policy(here, loosening):
    """The operator's policy applies whatever else is asked for."""
    try:
        reply = here.client.chat.completions.create(model=SERVED_NAME, messages=here.harmful[0], extra_body=loosening)
    except openai.BadRequestError:
        return
    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.usage.completion_tokens == 0


def test_scores_are_for_those_whom_the_policy_names(here):
    """A stranger learns whether the prompt was flagged, the observer learns the scores."""
    body = {"moderation": {"mode": "block"}}
    for client, sees in ((here.client, False), (here.server.client(OBSERVER_KEY), True)):
        reply = client.chat.completions.create(model=SERVED_NAME, messages=BENIGN[0], max_tokens=2, extra_body=body)
        result = reply.model_dump()["moderation"]["input"]["results"][0]
        assert bool(result["category_scores"]) is sees
    whole = here.client.chat.completions.with_raw_response.create(model=SERVED_NAME, messages=BENIGN[0], max_tokens=2)
    assert "foreguard" not in whole.text
    assert "harm" not in whole.text


def test_a_malformed_moderation_object_is_the_clients_error(here):
    """A mode that does not exist is refused, by name, instead of being ignored."""
    with pytest.raises(openai.BadRequestError, match=r"moderation\.mode"):
        here.client.chat.completions.create(
            model=SERVED_NAME, messages=BENIGN[0], extra_body={"moderation": {"mode": "allow"}}
        )


def test_beam_search_is_refused(here):
    """Clearly, on both routes that have it: each beam's every token would be a prompt of its own."""
    for ask in (
        lambda body: here.client.chat.completions.create(model=SERVED_NAME, messages=BENIGN[0], extra_body=body),
        lambda body: here.client.completions.create(model=SERVED_NAME, prompt="Hello", extra_body=body),
    ):
        with pytest.raises(openai.BadRequestError, match="Beam search") as caught:
            ask({"use_beam_search": True, "n": 2})
        assert caught.value.param == "use_beam_search"


def test_bad_requests_keep_vllms_own_errors(here):
    """Empty messages, a prompt beyond the context, malformed JSON, an unknown model: a clear 4xx, as without a
    guard.
    """
    with pytest.raises(openai.BadRequestError):
        here.client.chat.completions.create(model=SERVED_NAME, messages=[])
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        here.client.chat.completions.create(model=SERVED_NAME, messages=[{"role": "user", "content": "again " * 3000}])
    with pytest.raises(openai.NotFoundError):
        here.client.chat.completions.create(model="another", messages=BENIGN[0])
    broken = httpx.post(
        f"{here.server.url}/v1/chat/completions",
        content=b'{"messages": [',
        headers={"content-type": "application/json"},
    )
    assert 400 <= broken.status_code < 500


async def test_a_client_that_hangs_up_leaves_nothing_behind(here):
    """Connections cut right after the request was sent end their requests; the server answers the next one."""

    def counted() -> float:
        decided = here.server.metric("foreguard_requests_total")
        return decided + here.server.metric("foreguard_unscored_total", reason="aborted")

    before = counted()
    for number in range(12):
        await hang_up(here.server.process.port, f"{number} " + "word " * 900)
    await asyncio.sleep(2)
    assert answer(here.client, BENIGN[0]) == here.unguarded[key(BENIGN[0])]
    # A request that is cut before it reaches the engine was never a prompt; each of the others is counted once.
    assert 1 <= counted() - before <= 13
    assert here.server.metric("vllm:num_requests_running") == 0
    assert here.server.metric("vllm:num_requests_waiting") == 0


def test_prompts_are_not_in_the_log(here):
    """Neither a prompt nor an answer is written to the server's log."""
    here.client.chat.completions.create(
        model=SERVED_NAME, messages=[{"role": "user", "content": "zanzibar kaleidoscope"}]
    )
    assert "kaleidoscope" not in here.server.log.read_text()
