"""An answer is ended, steered or flagged at the very token at which it crosses a threshold, however the engine runs it.

The reference is a plain forward pass over prompt and answer, and the definition of a watch, written out.
"""

import hashlib

import pytest
import torch

from serving.config import GuardConfig
from serving.wire import STOP_ANSWER
from tests.serving.conformance.cast import TOLERANCE, Cast, near
from tests.serving.conformance.engine import engine
from tests.serving.conformance.modes import EVERY, V1_ASYNCHRONOUS
from tests.serving.planted import WATCHES, naive_answer
from tests.serving.world import OBSERVER_KEY, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

LENGTH = 40
QUICK = V1_ASYNCHRONOUS[:1]
REFUSED = [mode for mode in EVERY if mode.asynchronous and "--speculative-config" in mode.flags]
READ = [mode for mode in EVERY if mode not in REFUSED]
SHADOW = {"foreguard": {"shadow": True, "caller": hashlib.sha256(OBSERVER_KEY.encode()).hexdigest()}}
NAMES = [f"benign{i}" for i in range(8)] + [f"long{i}" for i in range(4)]


def along(cast, prompt, answer):
    """Each watch's score after each token of the answer, by name."""
    read = cast.reference.read([*prompt, *answer])
    return {watch.name: naive_answer(cast.artifact, read, len(prompt), watch) for watch in WATCHES}


def threshold(ends, ranks):
    """In the middle of the widest gap between two neighbours of these ranks, so that no rounding decides."""
    falling = sorted(ends, reverse=True)
    high, low = max(((falling[rank], falling[rank + 1]) for rank in ranks), key=lambda pair: pair[0] - pair[1])
    assert high - low > 2 * TOLERANCE, "the answers do not stand apart"
    return (high + low) / 2


@pytest.fixture(scope="module")
def limits(cast):
    """Thresholds that some answers cross in their middle: to end them, to steer them, to flag them."""
    ends = []
    for name in NAMES:
        prompt = cast.prompts[name]
        tokens = cast.reference.model.generate(torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False)[0]
        ends.append(
            {watch: scores[-1] for watch, scores in along(cast, prompt, tokens[len(prompt) :].tolist()).items()}
        )
    block = threshold([end["deep_swim"] for end in ends], range(2, 6))
    rest = [end for end in ends if end["deep_swim"] < block]
    return {
        "block": block,
        "flag": threshold([end["deep_swim"] for end in rest], range(3)),
        "steer": threshold([end["mean_ema"] for end in rest], range(3)),
    }


@pytest.fixture(scope="module")
def cast(reference, artifact, artifact_folder, tmp_path_factory):
    return Cast.of(reference, artifact, artifact_folder, tmp_path_factory.mktemp("watched"))


def watching(cast, limits, folder):
    """The usual policy, with rules on answers."""
    text = policy_text(cast.reference, cast.artifact, constrained="steer")
    (folder / "policy.yaml").write_text(
        text
        + f"""
answer_rules:
  - {{name: ends, action: block, when: {{deep_swim: {{above: {limits["block"]}}}}}}}
  - {{name: turns, action: steer, when: {{mean_ema: {{above: {limits["steer"]}}}}}}}
  - {{name: seen, action: flag, when: {{deep_swim: {{above: {limits["flag"]}}}}}}}
"""
    )
    return GuardConfig(**{**cast.guard.model_dump(), "policy": folder / "policy.yaml"})


@pytest.fixture
def mode(request):
    return request.node.callspec.params["played"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(mode, id=mode.name, marks=() if mode in QUICK else pytest.mark.long) for mode in READ],
)
def played(request, cast, limits, tmp_path_factory):
    """Outcomes of the prompts, all at once: acted on, and again with a caller's leave to watch only."""
    mode, folder = request.param, tmp_path_factory.mktemp(request.param.name)
    guard = watching(cast, limits, folder)
    with engine(folder / "log", guard, mode.flags, v2=mode.v2, asynchronous=mode.asynchronous) as running:
        found = {}
        for which, more in (("watched", {}), ("shadow", {"extra_args": SHADOW})):
            params = {"max_tokens": LENGTH, "ignore_eos": True, **more}
            requests = [
                {"id": f"{name}-{which}", "prompt": cast.prompts[name], "step": at // 2, "params": params}
                for at, name in enumerate(NAMES)
            ]
            found[which], _ = running.play(requests)
        again = [
            {"id": f"{name}-again", "prompt": [*cast.prompts[name], *tokens_of(found["watched"][f"{name}-watched"])]}
            for name in NAMES
        ]
        found["again"], _ = running.play(again)
    return found


def tokens_of(outcome):
    return outcome["completions"]["0"]["tokens"]


def crosses(scores, limit):
    """The first token after which the score is above the limit, or None, and whether rounding could decide
    otherwise.
    """
    first = next((t for t, score in enumerate(scores) if score > limit), None)
    unsure = any(abs(score - limit) < TOLERANCE for score in scores)
    return first, unsure


def drafts_of(mode):
    """How many tokens are drafted in a step."""
    return 3 if "--speculative-config" in mode.flags else 0


def judged(played, cast, mode, which="watched"):
    """Each prompt's name, its outcome, whether it was ended, and its scores after each token that is read.

    The last token of a whole answer is read only if it was drafted.
    """
    for name in NAMES:
        outcome = played[which][f"{name}-{which}"]
        ended = outcome["completions"]["0"]["stop"] == STOP_ANSWER
        tokens = tokens_of(outcome)
        read = tokens if ended or drafts_of(mode) else tokens[:-1]
        yield name, outcome, ended, along(cast, cast.prompts[name], read)


def test_an_answer_ends_at_the_token_that_crosses(played, mode, cast, limits):
    """It has that token, and none behind it; an answer that crosses nothing has all of its tokens.

    Where tokens are drafted, it ends with the step that read that token: up to as many tokens earlier.
    """
    drafts = drafts_of(mode)
    ended_by_guard = 0
    for name, outcome, ended, _ in judged(played, cast, mode):
        whole = tokens_of(played["shadow"][f"{name}-shadow"])
        scores = along(cast, cast.prompts[name], whole if drafts else whole[:-1])["deep_swim"]
        first, unsure = crosses(scores, limits["block"])
        unsure |= first == LENGTH - 1  # read only if it was drafted
        if unsure or any(verdict["action"] == "steer" for verdict in outcome.get("answers", [])):
            continue
        assert ended is (first is not None), name
        length = len(tokens_of(outcome))
        assert tokens_of(outcome) == whole[:length], name
        if ended:
            assert first + 1 - drafts <= length <= first + 1, name
            assert outcome["completions"]["0"]["finish"] == "stop"
            ended_by_guard += 1
        else:
            assert length == LENGTH
    assert ended_by_guard >= 2


def test_verdicts_are_in_order_of_severity_and_have_the_scores(played, mode, cast, limits):
    """One for each threshold more severe, with the scores of a plain pass up to that token."""
    seen = set()
    for name, outcome, _, scores in judged(played, cast, mode, "shadow"):
        actions = [verdict["decision"] for verdict in outcome.get("answers", [])]
        assert actions == sorted(set(actions), key=["flag", "steer", "block"].index), name
        for verdict in outcome.get("answers", []):
            at = verdict["tokens"] - 1
            assert verdict["scores"] == near({w: own[at] for w, own in scores.items()}), name
            assert verdict["action"] == "allow"
            seen.add(verdict["decision"])
        first, unsure = crosses(scores["deep_swim"], limits["block"])
        unsure |= first == LENGTH - 1  # read only if it was drafted
        assert unsure or ("block" in actions) is (first is not None), name
        assert len(tokens_of(outcome)) == LENGTH
    assert seen >= {"steer", "block"}


def test_a_steered_answer_turns_behind_the_token_that_crosses(played, cast):
    """Up to there it is the unsteered one, and then another."""
    turned = 0
    for name in NAMES:
        ours, theirs = played["watched"][f"{name}-watched"], played["shadow"][f"{name}-shadow"]
        steered = [verdict for verdict in ours.get("answers", []) if verdict["action"] == "steer"]
        ended = [verdict for verdict in ours.get("answers", []) if verdict["action"] == "block"]
        if not steered:
            shared = len(tokens_of(ours))
            assert tokens_of(ours) == tokens_of(theirs)[:shared], name
        elif not ended:
            shared = steered[0]["tokens"]
            assert tokens_of(ours)[:shared] == tokens_of(theirs)[:shared], name
            turned += tokens_of(ours) != tokens_of(theirs)
    assert turned


def test_nothing_steered_is_left_in_the_prefix_cache(played, cast):
    """Asked again with its own answer behind it, each prompt has the scores of a plain pass."""
    for name in NAMES:
        prompt = [*cast.prompts[name], *tokens_of(played["watched"][f"{name}-watched"])]
        [verdict] = played["again"][f"{name}-again"]["verdicts"]
        # A steered answer is far from what the heads were fitted on: distances of 30, where the bound is meant for 10.
        assert verdict["scores"] == near(cast.expected(prompt)), name


@pytest.mark.long
@pytest.mark.parametrize("mode", REFUSED, ids=str)
def test_what_cannot_be_read_is_refused_at_the_start(mode, cast, limits, tmp_path):
    """Drafts under asynchronous scheduling: the engine says so, and does not start."""
    with (
        pytest.raises(RuntimeError, match="cannot be watched under asynchronous scheduling"),
        engine(tmp_path / "log", watching(cast, limits, tmp_path), mode.flags, v2=mode.v2, asynchronous=True),
    ):
        pass
