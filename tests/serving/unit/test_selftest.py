"""The canary: an answer is not enough, a verdict with finite scores is."""

import asyncio
from types import SimpleNamespace

import pytest

from guard.verdict import Action, Mode, Unscored, Verdict
from probes.errors import ServingError
from serving import selftest
from serving.selftest import canary


def verdict(**changes):
    """A verdict on the canary."""
    values = {"scores": {"harm": 0.5}, "policy": "p@1", "event_id": "e"} | changes
    return Verdict(Action.ALLOW, Action.ALLOW, Mode.ENFORCE, **values)


def engine(outputs, *verdicts, vocabulary=50):
    """An engine that answers the canary with these verdicts, one an output; `.prompts` are what it was asked."""
    asked = SimpleNamespace(prompts=[], ranks=[], model_config=SimpleNamespace(get_vocab_size=lambda: vocabulary))

    async def collective_rpc(method):
        assert method == "foreguard_require_agreement"

    async def generate(prompt, params, request_id, data_parallel_rank):
        asked.prompts.append(prompt["prompt_token_ids"])
        asked.ranks.append(data_parallel_rank)
        for found in verdicts:
            yield outputs.one(outputs.completion(), verdict=found)

    asked.generate, asked.collective_rpc = generate, collective_rpc
    return asked


async def test_a_scored_canary_passes(outputs):
    """The verdict is returned, from whichever output it came with, and its tokens exist in the vocabulary."""
    asked = engine(outputs, None, verdict(), None)
    assert await canary(asked) == verdict()
    (prompt,) = asked.prompts
    assert all(0 <= token < 50 for token in prompt)
    assert len(prompt) > 16


async def test_a_canary_that_the_policy_blocks_passes(outputs):
    """Whether the canary is harmful is not the question; whether it was seen is."""
    blocked = verdict(rule="r")
    assert await canary(engine(outputs, blocked)) == blocked


@pytest.mark.parametrize("scores", [{"harm": float("nan")}, {"harm": float("inf")}])
async def test_scores_must_be_finite(outputs, scores):
    """A number that is none does not open the port."""
    with pytest.raises(ServingError, match="not scored"):
        await canary(engine(outputs, verdict(scores=scores)))


@pytest.mark.parametrize("reason", Unscored)
async def test_unscored_does_not_open_the_port(outputs, reason):
    """Each reason stops the start-up, and is named."""
    with pytest.raises(ServingError, match=reason.value):
        await canary(engine(outputs, verdict(unscored=reason, scores={})))


async def test_an_engine_without_the_gate_is_noticed(outputs):
    """It answers, but no verdict comes: the guard is not in it."""
    with pytest.raises(ServingError, match="no verdict"):
        await canary(engine(outputs, None, None))


async def test_an_engine_that_hangs_is_noticed(outputs, monkeypatch):
    """The wait ends."""
    monkeypatch.setattr(selftest, "TIMEOUT_S", 0.01)
    asked = engine(outputs)

    async def hang(*_, **__):
        await asyncio.sleep(10)
        yield

    asked.generate = hang
    with pytest.raises(ServingError, match="no answer"):
        await canary(asked)


async def test_every_engine_of_a_data_parallel_group_is_asked(outputs):
    """One after the other, by its rank; a single engine by none."""
    alone, several = engine(outputs, verdict()), engine(outputs, verdict())
    several.engine_core = SimpleNamespace(core_engines=[b"0", b"1", b"2"])
    await canary(alone)
    await canary(several)
    assert (alone.ranks, several.ranks) == ([None], [0, 1, 2])


async def test_ranks_that_do_not_agree_open_no_port(outputs):
    """Whatever a worker raises about what it read is said, and stops the start."""
    asked = engine(outputs, verdict())

    async def disagree(_method):
        raise RuntimeError("stage 0, rank 1: it read tap_silent, the first rank [1.0]")

    asked.collective_rpc = disagree
    with pytest.raises(ServingError, match="rank 1: it read tap_silent"):
        await canary(asked)
