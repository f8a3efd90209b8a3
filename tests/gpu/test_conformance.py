"""The conformance suite on a GPU: the same scenarios and the same references as on a CPU, on every engine of `modes`.

What a GPU adds to a row depends on who else is in the batch: its kernels sum in another order. Scores are compared
within the tolerance as ever. Answers are compared token for token where a prompt is alone, and elsewhere nearly all of
them must agree.
"""

import pytest

from tests.gpu.modes import MODES, graphs_of
from tests.serving.conformance import test_conformance as suite
from tests.serving.conformance.cast import Cast
from tests.serving.conformance.playing import play_every_scenario
from tests.serving.conformance.rounds import SCENARIOS

pytestmark = [pytest.mark.gpu, pytest.mark.engine, pytest.mark.timeout(900)]

MODULES = {True: "vllm.v1.worker.gpu.model_runner", False: "vllm.v1.worker.gpu_model_runner"}
SAME = 0.9
"""The share of answers that must be the unguarded engine's to the last token, where batches are laid out
differently."""

test_every_prompt_has_the_scores_of_a_pass_of_it_alone = suite.test_every_prompt_has_the_scores_of_a_pass_of_it_alone
test_what_is_decided_is_done = suite.test_what_is_decided_is_done
test_a_steered_answer_keeps_to_its_grammar = suite.test_a_steered_answer_keeps_to_its_grammar


@pytest.fixture(scope="session")
def cast(reference, artifact, artifact_folder, tmp_path_factory):
    return Cast.of(reference, artifact, artifact_folder, tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="module", params=MODES, ids=str)
def played(request, tmp_path_factory, cast):
    """Every scenario's outcomes and events, by engine: first unguarded, then guarded."""
    return play_every_scenario(request.param, cast, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture
def mode(request):
    return request.node.callspec.params["played"]


def _allowed(played, cast, scenario):
    """Yield the answers to what is allowed: the guarded engine's and the unguarded one's."""
    for request, ours, theirs in suite.pairs(played, cast, scenario):
        if cast.action(request["prompt"]) == "allow" and not (request.get("leaves") or request.get("sampled")):
            yield ours["completions"], theirs["completions"]


def test_what_is_allowed_alone_answers_as_without_a_guard(played, cast):
    """Token for token: with nobody beside it, a prompt takes the same steps in both engines."""
    answers = list(_allowed(played, cast, "alone"))
    assert answers
    for ours, theirs in answers:
        assert ours == theirs


def test_what_is_allowed_in_company_answers_as_without_a_guard(played, cast):
    """Nearly always: where others were blocked or steered, the batch is not the one that the unguarded engine had."""
    answers = [pair for scenario in SCENARIOS for pair in _allowed(played, cast, scenario)]
    same = sum(
        ours[index]["tokens"] == theirs[index]["tokens"]
        for ours, theirs in answers
        for index in theirs
        if index in ours
    )
    assert same >= SAME * sum(len(theirs) for _, theirs in answers)


def test_a_steered_answer_is_the_same_however_it_is_run(played, cast):
    """Nearly always the tokens of the prompt steered alone, and never all of those of the prompt unsteered."""
    [alone] = [o for r, o, _ in suite.pairs(played, cast, "alone") if r["id"] == "steered-alone"]
    expected = alone["completions"]["0"]["tokens"]
    steered = [
        (ours["completions"]["0"]["tokens"], theirs["completions"]["0"]["tokens"])
        for scenario in ("mixed", "cold_then_warm", "cancelled", "reset_in_mid_flight")
        for request, ours, theirs in suite.pairs(played, cast, scenario)
        if cast.action(request["prompt"]) == "steer"
    ]
    assert all(ours != theirs for ours, theirs in steered)
    assert sum(ours == expected for ours, _ in steered) >= SAME * len(steered) > 0


def test_the_mode_is_what_it_says(played, mode):
    """The runner, the scheduler, the graphs, the drafts and the preemptions are really there."""
    about = played["guarded about"]
    assert about["runner"] == MODULES[mode.v2]
    assert about["scheduler"] == ("GuardedAsyncScheduler" if mode.asynchronous else "GuardedScheduler")
    assert about["at_once"] == (2 if mode.asynchronous else 1)
    assert about["graphs"] == graphs_of(mode)
    assert played["unguarded about"]["graphs"] == graphs_of(mode)
    if "starved" in mode.name:
        assert suite.events(played, "crowded", "unguarded")["preempted"] > 0
    assert (suite.events(played, "crowded")["drafted"] > 0) is ("--speculative-config" in mode.flags)
