"""The canary: an answer is not enough, a verdict with finite scores is."""

import asyncio
from types import SimpleNamespace

import pytest

from guard.verdict import Action, Mode, Unscored, Verdict
from probes.artifact import Artifact
from probes.errors import PolicyError, ServingError
from probes.template import Template
from serving.api import selftest
from serving.api.selftest import Expected, canary

EXPECTED = (Expected({"harm": 0.5}, {"harm": 0.2}, None),)


def verdict(**changes):
    """A verdict on the canary."""
    values = {"scores": {"harm": 0.5}, "policy": "p@1", "event_id": "e", "policy_digest": "digest"} | changes
    return Verdict(Action.ALLOW, Action.ALLOW, Mode.ENFORCE, **values)


def engine(outputs, *verdicts, vocabulary=50):
    """An engine that answers the canary with these verdicts, one an output; `.prompts` are what it was asked."""
    asked = SimpleNamespace(
        prompts=[], ranks=[], adapters=[], model_config=SimpleNamespace(get_vocab_size=lambda: vocabulary)
    )

    async def collective_rpc(method):
        assert method == "foreguard_require_agreement"

    async def generate(prompt, params, request_id, lora_request, data_parallel_rank):
        asked.prompts.append(prompt["prompt_token_ids"])
        asked.ranks.append(data_parallel_rank)
        asked.adapters.append(lora_request)
        for found in verdicts:
            yield outputs.one(outputs.completion(), verdict=found)

    asked.generate, asked.collective_rpc = generate, collective_rpc
    return asked


async def test_a_scored_canary_passes(outputs):
    """The verdict is returned, from whichever output it came with, and its tokens exist in the vocabulary."""
    asked = engine(outputs, None, verdict(), None)
    assert await canary(asked, EXPECTED, "digest") == verdict()
    (prompt,) = asked.prompts
    assert all(0 <= token < 50 for token in prompt)
    assert len(prompt) > 16


async def test_a_canary_that_the_policy_blocks_passes(outputs):
    """Whether the canary is harmful is not the question; whether it was seen is."""
    blocked = verdict(rule="r")
    assert await canary(engine(outputs, blocked), EXPECTED, "digest") == blocked


@pytest.mark.parametrize("scores", [{"harm": float("nan")}, {"harm": float("inf")}])
async def test_scores_must_be_finite(outputs, scores):
    """A number that is none does not open the port."""
    with pytest.raises(ServingError, match="not scored"):
        await canary(engine(outputs, verdict(scores=scores)), EXPECTED, "digest")


@pytest.mark.parametrize("reason", Unscored)
async def test_unscored_does_not_open_the_port(outputs, reason):
    """Each reason stops the start-up, and is named."""
    with pytest.raises(ServingError, match=reason.value):
        await canary(engine(outputs, verdict(unscored=reason, scores={})), EXPECTED, "digest")


async def test_an_engine_without_the_gate_is_noticed(outputs):
    """It answers, but no verdict comes: the guard is not in it."""
    with pytest.raises(ServingError, match="no verdict"):
        await canary(engine(outputs, None, None), EXPECTED, "digest")


async def test_an_engine_that_hangs_is_noticed(outputs, monkeypatch):
    """The wait ends."""
    monkeypatch.setattr(selftest, "TIMEOUT_S", 0.01)
    asked = engine(outputs)

    async def hang(*_, **__):
        await asyncio.sleep(10)
        yield

    asked.generate = hang
    with pytest.raises(ServingError, match="no answer"):
        await canary(asked, EXPECTED, "digest")


async def test_every_engine_of_a_data_parallel_group_is_asked(outputs):
    """One after the other, by its rank; a single engine by none."""
    alone, several = engine(outputs, verdict()), engine(outputs, verdict())
    several.engine_core = SimpleNamespace(core_engines=[b"0", b"1", b"2"])
    await canary(alone, EXPECTED, "digest")
    await canary(several, EXPECTED, "digest")
    assert (alone.ranks, several.ranks) == ([None], [0, 1, 2])


async def test_ranks_that_do_not_agree_open_no_port(outputs):
    """Whatever a worker raises about what it read is said, and stops the start."""
    asked = engine(outputs, verdict())

    async def disagree(_method):
        raise RuntimeError("stage 0, rank 1: it read tap_silent, the first rank [1.0]")

    asked.collective_rpc = disagree
    with pytest.raises(ServingError, match="rank 1: it read tap_silent"):
        await canary(asked, EXPECTED, "digest")


@pytest.mark.parametrize("score", [0.5, 0.31, 0.69])
async def test_a_score_within_the_tolerance_passes(outputs, score):
    """Rounding in another order is no other model."""
    await canary(engine(outputs, verdict(scores={"harm": score, "combination": 7.0})), EXPECTED, "digest")


@pytest.mark.parametrize("score", [0.29, 0.71, -40.0])
async def test_another_score_than_calibration_had_opens_no_port(outputs, score):
    """The error names the probe, what was expected and how closely, and what was found."""
    with pytest.raises(ServingError, match=rf"harm {score:g}, not 0.5 ± 0.2") as caught:
        await canary(engine(outputs, verdict(scores={"harm": score})), EXPECTED, "digest")
    assert caught.value.field == "self-test"
    assert "calibrate" in caught.value.remedy


async def test_an_artifact_without_canary_scores_is_served(outputs, artifact, caplog):
    """One that an earlier version wrote: the log says what is not tested, and any finite score passes."""
    loaded = Artifact.load(artifact)
    older = Expected.of(loaded)
    await canary(engine(outputs, verdict(scores={"harm": 99.0})), [older], "digest")
    assert "keeps no scores of the canary prompt" in caplog.text
    assert loaded.manifest.digest[:12] in caplog.text


async def test_an_engine_with_another_policy_opens_no_port(outputs):
    """Edited, or exchanged, between the launch and the moment at which the engine read it."""
    with pytest.raises(PolicyError, match="an engine decides by another policy"):
        await canary(engine(outputs, verdict(policy_digest="another")), EXPECTED, "digest")


async def test_adapters_are_asked_for_scores_of_their_own(outputs):
    """Each by vLLM's request for it, on every engine, against its own artifact; the model's verdict is returned."""
    polite = SimpleNamespace(lora_name="polite")
    own = Expected({"depth": 3.0}, {"depth": 0.2}, Template(tail=(7, 8)), polite)
    asked = engine(outputs, verdict(scores={"harm": 0.5, "depth": 3.1}))
    asked.engine_core = SimpleNamespace(core_engines=[b"0", b"1"])
    found = await canary(asked, [*EXPECTED, own], "digest")
    assert found.scores["harm"] == 0.5
    assert (asked.ranks, asked.adapters) == ([0, 1, 0, 1], [None, None, polite, polite])
    assert [prompt[-2:] == [7, 8] for prompt in asked.prompts] == [False, False, True, True]
    with pytest.raises(ServingError, match=r"adapter polite .* depth 0.5, not 3"):
        await canary(engine(outputs, verdict(scores={"harm": 0.5, "depth": 0.5})), [*EXPECTED, own], "digest")
