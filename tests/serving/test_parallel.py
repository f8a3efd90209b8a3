"""Two ranks, or two engines: the same prompt has the same verdict, and what is allowed answers as without a guard."""

import asyncio

import pytest

from tests.serving.planted import naive_scores
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, LONG, MESSAGE, TOKENS, answer, key, world

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

TOLERANCE = 0.15
# Nats. The logits are bfloat16 numbers between 8 and 32, so that neighbours are 0.06 to 0.12 apart.
AS_LIKELY = 0.25
# Each rank, or engine, a core of its own.
BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


@pytest.fixture(scope="module", params=["--tensor-parallel-size", "--data-parallel-size"])
def two(request, start, reference, artifact):
    with world(start, reference, artifact, "--enforce-eager", request.param, "2", **BOUND) as made:
        yield made


def test_scores_are_those_of_a_plain_pass(two, reference, artifact):
    """Of every readout and site; neurons are read half by half where ranks share them."""
    for messages in [*BENIGN[:4], *LONG[:2], two.harmful[0], two.steered]:
        offline = naive_scores(artifact, reference.read(reference.token_ids(messages)))
        assert two.observe(messages) == pytest.approx(offline, abs=TOLERANCE)


async def test_everyone_at_once_gets_what_is_theirs(two):
    """Blocked ones the message, steered ones a steered answer, allowed ones what the unguarded server said.

    A batch rounds otherwise than a prompt alone. So an allowed answer may part from the unguarded one where two tokens
    are as likely; it is still the likeliest answer, by a plain float32 pass.
    """

    async def ask(client, messages):
        reply = await client.chat.completions.create(
            model=SERVED_NAME,
            messages=messages,
            max_tokens=TOKENS,
            temperature=0,
            extra_body={"return_token_ids": True},
        )
        return reply.choices[0]

    asked = [*BENIGN, *two.harmful, *[two.steered] * 4]
    async with two.server.async_client() as client:
        choices = await asyncio.gather(*[ask(client, messages) for messages in asked])
    for messages, choice in zip(BENIGN, choices, strict=False):
        prompt, answer_ids = two.reference.token_ids(messages), choice.model_extra["token_ids"]
        assert choice.message.content == two.unguarded[key(messages)] or (
            two.reference.shortfall(prompt, answer_ids) < AS_LIKELY
        ), choice.message.content
    texts = [choice.message.content for choice in choices[len(BENIGN) :]]
    assert set(texts[:-4]) == {MESSAGE}
    assert len(set(texts[-4:])) == 1


def test_a_steered_answer_is_another(two):
    """Than the one that the same server gives a caller who may look without acting."""
    plain = answer(two.server.client("observer-key"), two.steered, extra_body={"moderation": {"mode": "score"}})
    assert answer(two.client, two.steered) != plain
