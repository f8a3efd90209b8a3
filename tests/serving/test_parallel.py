"""Two ranks, or two engines: the same prompt has the same verdict, and what is allowed answers as without a guard."""

import asyncio

import pytest

from tests.serving.live_policy import SOON_S, Live
from tests.serving.planted import naive_scores
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, LONG, MESSAGE, TOKENS, alike, answer, block_limit, key, world

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

TOLERANCE = 0.15
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
    """Blocked ones the message, steered ones a steered answer, allowed ones what the unguarded server said."""

    async def ask(client, messages):
        reply = await client.chat.completions.create(
            model=SERVED_NAME, messages=messages, max_tokens=TOKENS, temperature=0
        )
        return reply.choices[0].message.content

    asked = [*BENIGN, *two.harmful, *[two.steered] * 4]
    async with two.server.async_client() as client:
        replies = await asyncio.gather(*[ask(client, messages) for messages in asked])
    for messages, reply in zip(BENIGN, replies, strict=False):
        assert alike(two.reference, messages, reply, two.unguarded[key(messages)]), (
            reply,
            two.unguarded[key(messages)],
        )
    assert set(replies[len(BENIGN) : -4]) == {MESSAGE}
    assert len(set(replies[-4:])) == 1


def test_a_steered_answer_is_another(two):
    """Than the one that the same server gives a caller who may look without acting."""
    plain = answer(two.server.client("observer-key"), two.steered, extra_body={"moderation": {"mode": "score"}})
    assert answer(two.client, two.steered) != plain


async def test_a_new_policy_reaches_every_engine(two, reference, artifact):
    """Two changes, each soon, and no prompt unscored for it. It is the last test: the server keeps the last policy."""
    live = Live(two.server, block_limit(reference, artifact), two.harmful)
    before = live.unscored()
    for name, action in (("flagging", "flag"), ("blocking", "block")):
        live.write(live.text(name, action))
        assert live.wait_for(name) < SOON_S
        replies = await asyncio.gather(*(asyncio.to_thread(live.ask, two.harmful[i % 8]) for i in range(32)))
        told = {(reply.headers["x-guardrail-policy"], reply.headers["x-guardrail-decision"]) for reply in replies}
        assert told == {(f"{name}@1", action)}
    assert live.unscored() == before
