"""The design's invariants, each against a real vLLM server and a real client, eager and compiled."""

import asyncio

import pytest
import torch

from calibration.model.arithmetic import VARIABLE
from calibration.model.chat_model import ChatModel
from calibration.recording.request_scores import score_batches
from probes.scoring import ProbeBank
from tests.serving.lab import MODEL, of
from tests.serving.planted import naive_scores
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, LONG, MESSAGE, OBSERVER_KEY, TOKENS, alike, answer, key, scores_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

# bfloat16 keeps 8 bits: the same sum in another order moves a score of size 10 by a few hundredths.
TOLERANCE = 0.15


def test_an_unflagged_answer_is_unchanged_token_for_token(here):
    """Guard on, nothing flagged: the output is what an unguarded server of the same mode gives."""
    for messages in BENIGN + LONG:
        assert answer(here.client, messages) == here.unguarded[key(messages)]


def test_served_scores_equal_offline_scores(here, reference, artifact):
    """A plain Hugging Face forward pass of the prompt alone gives the served score of every probe and readout."""
    for messages in BENIGN[:6] + here.harmful[:4] + LONG[:3]:
        offline = naive_scores(artifact, reference.read(reference.token_ids(messages)))
        assert here.observe(messages, cache_salt="offline") == pytest.approx(offline, abs=TOLERANCE)


@pytest.mark.parametrize("arithmetic", ["float32", "native"])
def test_served_scores_equal_those_that_calibration_computes(here, reference, artifact, arithmetic, monkeypatch):
    """Thresholds are certified on these scores: they are the served ones, in float32 and in the model's bfloat16."""
    monkeypatch.setenv(VARIABLE, arithmetic)
    chat, bank = ChatModel.load(MODEL), ProbeBank.from_artifact(artifact)
    assert chat.arithmetic == (torch.float32 if arithmetic == "float32" else torch.bfloat16)
    asked = BENIGN[:6] + here.harmful[:4] + LONG[:3]
    ids = [reference.token_ids(messages) for messages in asked]
    ((_, offline),) = score_batches(chat, bank, ids, [range(len(ids))])
    for messages, scores in zip(asked, offline.scores.tolist(), strict=True):
        served = here.observe(messages, cache_salt="calibration")
        assert served == pytest.approx(dict(zip(bank.names, scores, strict=True)), abs=TOLERANCE)


def test_a_warm_prefix_cache_gives_the_cold_verdict(here):
    """Cached tokens produce no hidden states, yet pooled readouts score the whole prompt."""
    for messages in LONG:
        cold = here.observe(messages, cache_salt=f"cold-{key(messages)}")
        warm = here.observe(messages, cache_salt=f"cold-{key(messages)}")
        assert warm == pytest.approx(cold, abs=TOLERANCE)


def test_a_conversation_that_grows_over_cached_turns_is_scored_whole(here, reference, artifact):
    """The second turn's prompt hits the blocks of the first, answer included, and is scored as if it were new."""
    first = LONG[0]
    grown = [*first, {"role": "assistant", "content": answer(here.client, first)}, *BENIGN[0]]
    offline = naive_scores(artifact, reference.read(reference.token_ids(grown)))
    assert here.observe(grown) == pytest.approx(offline, abs=TOLERANCE)


async def test_alone_and_in_a_batch_give_the_same_verdict(here):
    """Forty requests at once, each gets the scores and the decision it gets alone."""
    conversations = (BENIGN + here.harmful + LONG)[:20] * 2
    alone = [here.observe(messages) for messages in conversations[:20]] * 2
    async with here.server.async_client(OBSERVER_KEY) as client:
        ask = [
            client.chat.completions.create(
                model=SERVED_NAME,
                messages=messages,
                max_tokens=4,
                temperature=0,
                extra_body={"moderation": {"mode": "score"}, "cache_salt": f"batch-{index}"},
            )
            for index, messages in enumerate(conversations)
        ]
        replies = await asyncio.gather(*ask)
    for reply, expected in zip(replies, alone, strict=True):
        assert scores_of(reply) == pytest.approx(expected, abs=TOLERANCE)


def test_a_blocked_request_has_no_token(here):
    """Block comes before the first token: no completion token was ever made."""
    for messages in here.harmful:
        reply = here.client.chat.completions.create(model=SERVED_NAME, messages=messages, max_tokens=TOKENS)
        assert reply.choices[0].finish_reason == "content_filter"
        assert reply.choices[0].message.content == MESSAGE
        assert reply.usage.completion_tokens == 0


def test_steering_begins_with_the_first_token(here):
    """A steered request's first token already differs, and the request goes on to its end."""
    plain = answer(here.server.client(OBSERVER_KEY), here.steered, extra_body={"moderation": {"mode": "score"}})
    reply = here.client.chat.completions.with_raw_response.create(
        model=SERVED_NAME, messages=here.steered, max_tokens=TOKENS, temperature=0, logprobs=True
    )
    assert reply.headers["x-guardrail-decision"] == "steer"
    steered = reply.parse().choices[0]
    assert steered.message.content
    assert steered.finish_reason in ("stop", "length")
    assert not plain.startswith(steered.logprobs.content[0].token)


def test_a_steered_request_leaks_into_no_other(here):
    """Follow-ups that share the steered request's blocks answer as they do on blocks of their own."""
    plain = answer(here.server.client(OBSERVER_KEY), here.steered, extra_body={"moderation": {"mode": "score"}})
    steered = answer(here.client, here.steered)
    assert steered != plain
    observer = here.server.client(OBSERVER_KEY)
    for follow_up in BENIGN[:6]:
        grown = [*here.steered, {"role": "assistant", "content": steered}, *follow_up]
        shared = answer(observer, grown, extra_body={"moderation": {"mode": "score"}})
        fresh = answer(observer, grown, extra_body={"moderation": {"mode": "score"}, "cache_salt": key(grown)})
        assert shared == fresh
    again = answer(observer, here.steered, extra_body={"moderation": {"mode": "score"}})
    assert again == plain


async def test_steering_leaves_its_neighbours_in_the_batch_alone(here):
    """Unsteered requests that run beside steered ones answer token for token as without a guard."""

    async def ask(client, messages):
        reply = await client.chat.completions.create(
            model=SERVED_NAME, messages=messages, max_tokens=TOKENS, temperature=0
        )
        return reply.choices[0].message.content

    neighbours = BENIGN[:8]
    mixed = [messages for pair in zip(neighbours, [here.steered] * 8, strict=True) for messages in pair]
    async with here.server.async_client() as client:
        replies = await asyncio.gather(*[ask(client, messages) for messages in mixed])
    for messages, reply in zip(neighbours, replies[::2], strict=True):
        assert alike(here.reference, messages, reply, here.unguarded[key(messages)]), messages


def test_every_prompt_is_counted_once(here):
    """Requests on /metrics grow by exactly what was sent, by action; scores are counted per probe."""
    before = {
        action: here.server.metric("foreguard_requests_total", action=action) for action in ("allow", "block", "steer")
    }
    scored = here.server.metric("foreguard_score_count", probe="harm")
    for messages in [*BENIGN[:3], *here.harmful[:2], here.steered]:
        here.client.chat.completions.create(model=SERVED_NAME, messages=messages, max_tokens=4, n=2)
    after = {action: here.server.metric("foreguard_requests_total", action=action) for action in before}
    assert {action: after[action] - before[action] for action in before} == {"allow": 3, "block": 2, "steer": 1}
    assert here.server.metric("foreguard_score_count", probe="harm") - scored == 6
    assert here.server.metric("foreguard_unscored_total") == here.server.metric(
        "foreguard_unscored_total", reason="aborted"
    )


def test_a_multi_turn_attack_is_judged_as_a_whole(here, reference, artifact):
    """Several turns are one prompt: the served score is the offline score of the whole conversation."""
    for messages in of("test", "multi_turn_harmful", 4):
        offline = naive_scores(artifact, reference.read(reference.token_ids(messages)))
        assert here.observe(messages) == pytest.approx(offline, abs=TOLERANCE)
