"""The same prompt gets the same verdict however the engine happens to run it; what is not flagged answers as ever.

Every scenario of `rounds` on every engine of `modes`, against two references: scores of a plain forward pass of each
prompt alone, and the tokens of an unguarded engine of the same mode that is asked the same in the same steps.
"""

import pytest

from serving.wire import STOP_BLOCKED
from tests.serving.conformance.cast import Cast, near
from tests.serving.conformance.modes import EVERY, V1_ASYNCHRONOUS
from tests.serving.conformance.playing import play_every_scenario
from tests.serving.conformance.rounds import SCENARIOS

QUICK = V1_ASYNCHRONOUS[:1]
"""What `make test` runs; the rest is `make test-long`."""
UNDECIDED = 0.2
"""Logits closer than this may change places: they are about 10 in size, and bfloat16 keeps 8 bits."""
KINDS = ("preempted", "drafted", "accepted", "loaded")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def cast(reference, artifact, artifact_folder, tmp_path_factory):
    return Cast.of(reference, artifact, artifact_folder, tmp_path_factory.mktemp("conformance"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(mode, id=mode.name, marks=() if mode in QUICK else pytest.mark.long) for mode in EVERY],
)
def played(request, cast, tmp_path_factory):
    """Every scenario's outcomes and events, by engine: first unguarded, then guarded."""
    return play_every_scenario(request.param, cast, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture
def mode(request):
    return request.node.callspec.params["played"]


def pairs(played, cast, scenario):
    """Each request of a scenario with its outcome, and what the unguarded engine made of it."""
    for requests, (ours, _), (theirs, _) in zip(
        SCENARIOS[scenario](cast), played["guarded"][scenario], played["unguarded"][scenario], strict=True
    ):
        for request in requests:
            if "prompt" in request:
                yield request, ours.get(request["id"], {}), theirs.get(request["id"], {})


def events(played, scenario, which="guarded"):
    return {k: sum(each.get(k, 0) for _, each in played[which][scenario]) for k in KINDS}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_prompt_has_the_scores_of_a_pass_of_it_alone(played, cast, scenario):
    """Cold or cached, whole or in chunks, alone or in a crowd, preempted or not: every probe's score, every readout."""
    judged = 0
    for request, ours, _ in pairs(played, cast, scenario):
        for verdict in ours.get("verdicts", []):
            assert verdict["unscored"] is None, request["id"]
            assert verdict["scores"] == near(cast.expected(request["prompt"])), request["id"]
            judged += 1
        assert ours.get("verdicts") or request.get("leaves"), f"{request['id']} has no verdict"
    assert judged


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_decided_is_done(played, cast, scenario):
    """A blocked request has no token and says why it stopped; every other one has an answer."""
    for request, ours, _ in pairs(played, cast, scenario):
        if request.get("leaves"):
            continue
        expected = cast.action(request["prompt"])
        assert {verdict["action"] for verdict in ours["verdicts"]} == {expected}, request["id"]
        for completion in ours["completions"].values():
            assert (completion["stop"] == STOP_BLOCKED) is (expected == "block"), request["id"]
            assert bool(completion["tokens"]) is (expected != "block"), request["id"]
            assert completion["finish"] in ("stop", "length"), request["id"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_allowed_answers_as_without_a_guard(played, cast, scenario):
    """Token for token, with as many log-probabilities, whoever beside it was blocked or steered.

    A preempted answer is computed again in another batch, guarded or not, and may part where the model itself is
    undecided.
    """
    preempted = any(events(played, scenario, which)["preempted"] for which in ("guarded", "unguarded"))
    for request, ours, theirs in pairs(played, cast, scenario):
        if cast.action(request["prompt"]) == "allow" and not (request.get("leaves") or request.get("sampled")):
            assert ours["prompt_logprobs"] == theirs["prompt_logprobs"]
            if ours["completions"] != theirs["completions"]:
                assert preempted, request["id"]
                assert how_decided(cast, request, ours, theirs) < UNDECIDED, request["id"]


def how_decided(cast, request, ours, theirs):
    """Return how far apart, in a plain pass, the logits of the two tokens are at which the answers part."""
    one, other = (outcome["completions"]["0"]["tokens"] for outcome in (ours, theirs))
    place = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    logits = cast.reference.logits([*request["prompt"], *one[:place]])
    return abs(float(logits[one[place]] - logits[other[place]]))


@pytest.mark.parametrize("scenario", ["mixed", "cold_then_warm", "cancelled", "reset_in_mid_flight"])
def test_a_steered_answer_is_the_same_however_it_is_run(played, cast, scenario):
    """The tokens of the prompt steered alone, which are not those of the prompt unsteered."""
    alone = next(ours for request, ours, _ in pairs(played, cast, "alone") if request["id"] == "steered-alone")
    count = 0
    for request, ours, theirs in pairs(played, cast, scenario):
        if cast.action(request["prompt"]) == "steer":
            assert ours["completions"]["0"]["tokens"] == alone["completions"]["0"]["tokens"], request["id"]
            assert ours["completions"]["0"]["tokens"] != theirs["completions"]["0"]["tokens"], request["id"]
            count += 1
    assert count


def test_a_steered_answer_keeps_to_its_grammar(played, cast):
    """And so does an allowed one."""
    for request, ours, _ in pairs(played, cast, "structured_outputs"):
        text = ours["completions"]["0"]["text"]
        if cast.action(request["prompt"]) != "block" and request["id"].endswith("-regex"):
            assert text in ("yes", "no", "maybe")
        if cast.action(request["prompt"]) != "block" and request["id"].endswith("-grammar"):
            assert text in ("up", "down")


def test_the_mode_is_what_it_says(played, mode, cast):
    """The runner, the scheduler, the cache, the drafts and the preemptions are really there."""
    about = played["guarded about"]
    assert about["runner"] == ("vllm.v1.worker.cpu.model_runner" if mode.v2 else "vllm.v1.worker.cpu_model_runner")
    assert about["scheduler"] == ("GuardedAsyncScheduler" if mode.asynchronous else "GuardedScheduler")
    assert about["at_once"] == (2 if mode.asynchronous else 1)
    assert about["executor"] == ("RayExecutorV2" if "ray" in mode.flags else "UniProcExecutor")
    cached = sum(ours.get("cached") or 0 for _, ours, _ in pairs(played, cast, "cold_then_warm"))
    if "starved" in mode.name:  # what is cached is soon evicted
        assert events(played, "crowded", "unguarded")["preempted"] > 0
    else:
        assert bool(cached) is ("--no-enable-prefix-caching" not in mode.flags)
    assert (events(played, "crowded")["drafted"] > 0) is ("--speculative-config" in mode.flags)
    assert events(played, "reset_in_mid_flight", "unguarded")["preempted"] > 0
    for which in ("guarded", "unguarded"):
        loaded = [events(played, scenario, which)["loaded"] for scenario in SCENARIOS]
        assert (sum(loaded) > 0) is ("--kv-transfer-config" in mode.flags)
