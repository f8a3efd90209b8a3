"""The gate in vLLM's real scheduler, whose workers are played: several steps under way, prompts in chunks."""

import pytest

from tests.serving.stepped import Stepped

SCORES = {"fine": 0.0, "doubtful": 1.5, "harmful": 5.0, "worse": 9.0}
ACTIONS = {"fine": "allow", "doubtful": "flag", "harmful": "block", "worse": "block"}


@pytest.mark.parametrize(
    ("under_way", "options"),
    [
        (1, {}),
        (2, {"stages": 2}),
        (4, {"stages": 4}),
        (2, {"asynchronous": True}),
        (3, {"stages": 2, "asynchronous": True}),
    ],
)
@pytest.mark.parametrize("chunk", [16, 256])
def test_every_prompt_is_decided_once_and_before_its_first_token(config, under_way, options, chunk):
    """One step at a time, in a pipeline of several stages, or a step ahead: blocked ones have no token, others all."""
    stepped = Stepped(config(), under_way=under_way, max_num_batched_tokens=chunk, max_num_seqs=8, **options)
    stepped.scores = SCORES
    for number, name in enumerate(SCORES):
        stepped.add(name, range(100 * number, 100 * number + 40), max_tokens=5)
    for _ in range(60):
        stepped.step()
    assert not stepped.scheduler.has_unfinished_requests()
    assert {name: verdict["action"] for name, verdict in stepped.verdicts.items()} == ACTIONS
    assert {name: verdict["scores"]["harm"] for name, verdict in stepped.verdicts.items()} == SCORES
    assert {name: len(tokens) for name, tokens in stepped.tokens.items()} == {
        name: 0 if action == "block" else 5 for name, action in ACTIONS.items()
    }
    assert stepped.asked == dict.fromkeys(SCORES, 1)


def test_a_prompt_that_starts_over_is_asked_for_again(config):
    """What is preempted in mid-prefill is decided by the step that finishes it, however many began it."""
    stepped = Stepped(config(), max_num_batched_tokens=16, max_num_seqs=4)
    stepped.scores = SCORES
    stepped.add("harmful", range(40))
    stepped.add("fine", range(50, 90), max_tokens=5)
    for number in range(30):
        stepped.step()
        if number in (1, 3, 7):
            stepped.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert stepped.tokens == {"harmful": [], "fine": [1] * 5}
    assert stepped.verdicts["harmful"]["action"] == "block"
