"""Two API server processes and chunks of 64 tokens, with blocked requests answered as errors."""

import asyncio
import time

import httpx
import openai
import pytest

from tests.serving.planted import naive_scores
from tests.serving.server import SERVED_NAME, hang_up
from tests.serving.world import BENIGN, LONG, OBSERVER_KEY, World, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOLERANCE = 0.15


@pytest.fixture(scope="module")
def scaled(start, reference, artifact):
    policy = policy_text(reference, artifact).replace("response: {", "response: {style: error, ")
    flags = ["--enforce-eager", "--api-server-count", "2", "--max-num-batched-tokens", "64", "--max-num-seqs", "32"]
    with start(policy, *flags) as server:
        yield World(server, reference, clearly_harmful(reference, artifact, 8), steered=[])


def test_many_chunks_score_like_one(scaled, reference, artifact):
    """A prompt prefilled in chunks of 64 tokens has the score of the whole prompt, for every readout."""
    for messages in LONG[:4]:
        offline = naive_scores(artifact, reference.read(reference.token_ids(messages)))
        assert scaled.observe(messages) == pytest.approx(offline, abs=TOLERANCE)


@pytest.mark.parametrize("stream", [False, True])
def test_a_block_can_be_an_error_in_streams_too(scaled, stream):
    """The decision precedes the first byte: a stream gets a true HTTP 400 with OpenAI's envelope."""
    with pytest.raises(openai.BadRequestError) as caught:
        scaled.client.chat.completions.create(model=SERVED_NAME, messages=scaled.harmful[0], stream=stream)
    assert caught.value.code == "content_filter"
    assert caught.value.response.headers["x-guardrail-decision"] == "block"


def test_a_responses_stream_can_be_an_error(scaled):
    """The Responses API sends events before the prompt is prefilled; they wait for the verdict too."""
    with pytest.raises(openai.BadRequestError) as caught:
        scaled.client.responses.create(model=SERVED_NAME, input=scaled.harmful[0][-1]["content"], stream=True)
    assert caught.value.code == "content_filter"


async def test_clients_leave_at_any_time(scaled):
    """Before the verdict, about then and after it, from either process: each prompt is in the books once, none runs
    on.
    """
    metric = scaled.server.metric

    def counted() -> float:
        return metric("foreguard_requests_total") + metric("foreguard_unscored_total", reason="aborted")

    before = counted()
    moments = [0.005 * 1.25**number for number in range(24)]  # to 0.85 s
    # As many tokens as the context has room for: nobody stays to the end.
    options = {"stream": True, "max_tokens": 600, "ignore_eos": True}
    content, port = LONG[1][-1]["content"], scaled.server.process.port
    asked = [hang_up(port, content, after, cache_salt=str(after), **options) for after in moments]
    # However slow the machine is, one leaves with the decision in hand, and one with the first token.
    decided = hang_up(port, content, 60, at=b"x-guardrail-decision", cache_salt="decided", **options)
    begun = hang_up(port, content, 60, at=b'"content":', cache_salt="begun", **options)
    come = await asyncio.gather(*asked, decided, begun)
    assert not come[0]
    assert b"x-guardrail-decision" in come[-2]
    assert b'"content":' in come[-1]
    assert b"[DONE]" not in b"".join(come)
    for _ in range(40):
        if metric("vllm:num_requests_running") == metric("vllm:num_requests_waiting") == 0:
            break
        await asyncio.sleep(0.25)
    assert metric("vllm:num_requests_running") == metric("vllm:num_requests_waiting") == 0
    # One that is cut before it reaches the engine was never a prompt.
    assert len([each for each in come if each]) <= counted() - before <= len(come)


async def test_metrics_add_up_over_api_servers(scaled):
    """Sixty requests over two processes: whichever answers /metrics tells of all sixty."""
    before = scaled.server.metric("foreguard_requests_total")
    async with scaled.server.async_client(OBSERVER_KEY) as client:
        ask = [
            client.chat.completions.create(model=SERVED_NAME, messages=BENIGN[index % 8], max_tokens=2)
            for index in range(60)
        ]
        await asyncio.gather(*ask)
    for _ in range(4):
        assert scaled.server.metric("foreguard_requests_total") - before == 60
    assert scaled.server.metric("foreguard_policy_info", name="enforce", version="2", mode="enforce") == 1
    assert scaled.server.metric("foreguard_threshold", rule="harmful", probe="harm") != 0


def test_public_metrics_tell_no_scores_of_either_process(scaled):
    """Whichever process answers, and although both keep their metrics in one folder."""
    for _ in range(8):
        page = httpx.get(f"{scaled.server.url}/metrics", headers={"connection": "close"}, timeout=30).text
        assert "foreguard_requests_total" in page
        assert "vllm:num_requests_running" in page
        for told in ("foreguard_score", "foreguard_threshold", "foreguard_answer_tokens", "foreguard_drift", "harmful"):
            assert told not in page


def test_readiness_is_that_of_all_processes(scaled):
    """One series, the lowest of both processes; either of them answers `/guard/ready`."""
    for _ in range(8):
        reply = httpx.get(f"{scaled.server.url}/guard/ready", headers={"connection": "close"}, timeout=10)
        assert reply.status_code == 200
    assert scaled.server.metric("foreguard_ready") == 1
    assert time.time() - scaled.server.metric("foreguard_last_scored_timestamp_seconds") < 60
