"""Two API server processes and chunks of 64 tokens, with blocked requests answered as errors."""

import asyncio

import openai
import pytest

from tests.serving.planted import naive_scores
from tests.serving.server import SERVED_NAME
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
