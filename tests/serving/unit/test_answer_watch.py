"""Answers are read in step with the engine: drafts, repeats after a preemption, gaps and rows that are used again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guard.binding import bind_to
from guard.policy import Policy
from guard.verdict import Action, Unscored
from probes.answer_reading import WatchBank
from probes.artifact import BENIGN_ANSWERS, BENIGN_SCORES, HARMFUL_ANSWERS, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe, Watch
from probes.readout import Readout
from serving.core.answer_watch import AnswerWatch
from serving.core.answer_watches import AnswerWatches
from serving.core.case import Case
from serving.wire import ANSWERS, AnswerTokens

RULE = {"name": "a", "action": "block", "when": {"peak": {"above": 2}}}
FLAG = {"name": "b", "action": "flag", "when": {"peak": {"above": 1}}}
PROMPT = 5


@pytest.fixture
def artifact():
    """An artifact whose one watch is its probe's highest token score so far."""
    digests = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "")
    watch = Watch(name="peak", probe="harm", readout=Readout(kind="swim", window=1), max_tokens=1)
    tensors = {"watch.peak.centre": torch.zeros(1), "watch.peak.spread": torch.ones(1)}
    tensors |= {BENIGN_SCORES: torch.zeros(4, 1), HARMFUL_SCORES: torch.ones(3, 1)}
    tensors |= {BENIGN_ANSWERS: torch.zeros(4, 1), HARMFUL_ANSWERS: torch.ones(3, 1)}
    return Artifact(
        Manifest(
            name="a",
            created="",
            fingerprint=Fingerprint(architecture="A", num_layers=1, hidden_size=2, dtype="float32", **digests),
            probes=(Probe(name="harm", method="m", layers=(0,)),),
            watches=(watch,),
        ),
        {"probe.harm.weight": torch.ones(1, 1, 2), **tensors},
    )


@pytest.fixture
def rules(artifact):
    """Block above 2, flag above 1; what has no score is flagged."""
    told = {"name": "p", "version": "1", "on_unscored": "flag", "rules": [RULE | {"when": {"harm": {"above": 9}}}]}
    answers = [RULE | {"name": "c"}, FLAG]
    return bind_to(artifact, Policy.model_validate(told | {"answer_rules": answers})).answers


def judge(rules):
    return lambda _case, reading: rules.judge(reading)


@pytest.fixture
def watch(rules, artifact):
    """A watch with room for two answers."""
    bank = WatchBank.of(artifact.manifest.watches, artifact.tensors)
    return AnswerWatch(rules, bank, slice(0, 1), 2, judge(rules))


@pytest.fixture
def cases(rules):
    """Watched answers by their requests' names, each made when it is first asked for, with `begin` where it begins."""

    class Begun(dict):
        def __missing__(self, name):
            return self.begin(name)

        def begin(self, name, at=PROMPT, **request):
            policy = SimpleNamespace(answers=rules)
            self[name] = Case(answering(name, **request), 0, policy=policy, answer_begin=at)
            return self[name]

    return Begun()


def answering(name="r", max_tokens=100, eos_token_id=None, stop_token_ids=None):
    """A request that has no token of its answer yet."""
    params = SimpleNamespace(eos_token_id=eos_token_id, stop_token_ids=stop_token_ids)
    return SimpleNamespace(request_id=name, sampling_params=params, max_tokens=max_tokens, num_output_tokens=0)


def crossed(cases):
    """What answers came to since the last look, by request."""
    found = {name: case.crossing for name, case in cases.items() if case.crossing}
    for name in found:
        cases[name].crossing = None
    return found


@pytest.fixture
def step(watch, cases):
    """One step: for each request the position of its first token and the tokens' scores; returns what was crossed."""

    def step(rejected=None, asked=None, **taken):
        names, scores = list(taken), [score for _, own in taken.values() for score in own]
        tokens = AnswerTokens(
            names,
            np.array([first for first, _ in taken.values()], dtype=np.int64),
            np.array([len(own) for _, own in taken.values()], dtype=np.int64),
            np.array(scores, dtype=np.float32).reshape(-1, 1),
        )
        watch.take_in(tokens, [cases[name] for name in asked or names], rejected or {})
        return crossed(cases)

    return step


def actions(found):
    return {name: crossing.verdict.action for name, crossing in found.items()}


def test_each_threshold_is_told_of_once(step):
    """At the token that crosses it, and again only for a more severe one."""
    assert step(r=(5, [0.0])) == {}
    assert actions(step(r=(6, [1.5]))) == {"r": Action.FLAG}
    assert step(r=(7, [1.7])) == {}
    assert actions(step(r=(8, [2.5]))) == {"r": Action.BLOCK}
    assert step(r=(9, [9.0])) == {}


def test_rejected_drafts_do_not_count(step):
    """Of three rows two are the answer's; the third's place is taken by the token that replaced it."""
    assert step({"r": 1}, r=(5, [0.0, 0.0, 9.0])) == {}
    assert step({"r": 1}, r=(7, [0.5, 9.0])) == {}
    assert actions(step(r=(8, [3.0]))) == {"r": Action.BLOCK}


@pytest.fixture
def watches(rules, artifact):
    """The watch over all answers, of one model."""
    policies = SimpleNamespace(known=[rules.policy], on_answer=judge(rules))
    scheduling = SimpleNamespace(max_num_seqs=2, async_scheduling=False)
    vllm_config = SimpleNamespace(scheduler_config=scheduling, speculative_config=None)
    return AnswerWatches(policies, [artifact], vllm_config)


def test_drafts_behind_a_prompt_do_not_count(watches, cases):
    """Where a prompt lacks its last token alone, vLLM fills its rows up with drafts that are none, and samples one
    token.

    Nor do drafts that were accepted behind the answer's end: the last token that it may have, or one that ends it.
    """
    case = cases["r"]

    def take_in(drafts, sampled, first, scores, **request):
        case.request = answering(**request)
        step = SimpleNamespace(scheduled_spec_decode_tokens={"r": drafts})
        output = SimpleNamespace(sampled_token_ids=[sampled], req_id_to_index={"r": 0})
        tokens = np.array(scores, dtype=np.float32).reshape(-1, 1)
        setattr(output, ANSWERS, AnswerTokens(["r"], np.array([first]), np.array([len(scores)]), tokens))
        watches.take_in(step, output, [case])
        return crossed(cases)

    assert take_in([-1, -1, -1], [7], PROMPT, [9.0, 9.0, 9.0]) == {}
    assert take_in([3, 4, 5], [3, 8], PROMPT, [0.0, 0.5, 9.0, 9.0]) == {}
    assert take_in([3, 4, 5], [3, 4, 5, 8], PROMPT + 2, [0.0, 0.0, 9.0, 9.0], max_tokens=1) == {}
    assert take_in([3, 2, 5], [3, 2, 5, 8], PROMPT + 4, [0.0, 0.0, 0.0, 9.0], eos_token_id=2) == {}
    assert take_in([2, 4, 5], [2, 4, 5, 8], PROMPT + 7, [0.0, 0.0, 9.0, 9.0], stop_token_ids=[1, 2]) == {}
    found = take_in([3, 2, 5], [3, 2, 5, 8], PROMPT + 9, [0.0, 0.0, 0.0, 2.5])
    assert actions(found) == {"r": Action.BLOCK}
    assert found["r"].num_tokens == 13


def test_what_a_preemption_computes_again_is_read_once(step):
    """In whatever pieces it comes; rows before the answer are not sent, an empty piece is none."""
    step(r=(5, [0.0]))
    step(r=(6, [0.1]))
    assert step(r=(5, [])) == {}
    assert step(r=(5, [9.0])) == {}
    assert actions(step(r=(6, [9.0, 1.5]))) == {"r": Action.FLAG}


def test_an_answer_that_begins_in_its_prompt_is_read_from_there(cases, step):
    """Its beginning may cross alone; what crosses later is told with how much there is, and where it stands."""
    for name in ("a", "b"):
        cases.begin(name, PROMPT - 3)
    found = step(a=(2, [0.0, 1.5, 0.0]), b=(2, [0.0, 0.0, 0.0]))
    assert actions(found) == {"a": Action.FLAG}
    assert (found["a"].num_tokens, found["a"].position) == (3, PROMPT)
    found = step(a=(5, [0.0]), b=(5, [2.5]))
    assert actions(found) == {"b": Action.BLOCK}
    assert (found["b"].num_tokens, found["b"].position) == (4, PROMPT + 1)


def test_a_missing_token_is_no_score(cases, step):
    """Not sent at all, or one before it was not: the policy says what happens, once, and it is not watched on."""
    step(gone=(5, [0.0]), gap=(5, [0.0]))
    found = step(asked=["gone", "gap"], gap=(7, [0.0]))
    assert {crossing.verdict.unscored for crossing in found.values()} == {Unscored.MISSING}
    assert {crossing.num_tokens for crossing in found.values()} == {1}
    assert actions(found) == {"gone": Action.FLAG, "gap": Action.FLAG}
    assert cases["gone"].answer_begin is cases["gap"].answer_begin is None


def test_a_score_that_is_no_number_is_none(step):
    """And says so."""
    assert step(r=(5, [float("nan")]))["r"].verdict.unscored is Unscored.NOT_FINITE


def test_rows_are_used_again_and_grow(watch, cases, step):
    """More answers than there was room for, one after another and at once: each begins at nothing."""
    for turn in range(3):
        names = [f"r{turn}-{number}" for number in range(5)]
        high = {name: (5, [2.5 if number == turn else 0.0]) for number, name in enumerate(names)}
        assert actions(step(**high)) == {names[turn]: Action.BLOCK}
        assert len({cases[name].answer_row for name in names}) == len(names)
        for name in names:
            watch.end(cases[name])
            assert (cases[name].answer_begin, cases[name].answer_row) == (None, None)
    assert len(watch._begins) == 8


def test_what_waits_has_no_row(watch, cases, step):
    """A queue of a thousand takes no room; answers that begin at once do, and give it back."""
    for number in range(1000):
        cases.begin(f"r{number}")
    assert step(r7=(5, []), r8=(5, [])) == {}
    assert len(watch._read.counts(np.arange(2))) == len(watch._begins) == 2
    for number in range(0, 1000, 2):
        pair = {f"r{each}": (5, [2.5 * (each == 500)]) for each in (number, number + 1)}
        assert list(step(**pair)) == ["r500"] * ("r500" in pair)
        for name in pair:
            watch.end(cases[name])
    assert len(watch._begins) == 2


def test_an_answer_that_is_lost_before_its_first_token_has_no_tokens(cases, step):
    """It is told as one of none."""
    found = step(asked=["r"])
    assert (found["r"].num_tokens, found["r"].verdict.unscored) == (0, Unscored.MISSING)
    assert cases["r"].answer_begin is None


@pytest.mark.parametrize(
    "broken", [Unscored.SENSOR_ERROR.value, "no reason that anyone knows", None, AnswerTokens([], None, None, None)]
)
def test_whatever_arrives_in_place_of_tokens_leaves_the_answer_unscored(watches, cases, broken):
    """A reason, none that is known, nothing at all, or rubbish: the engine lives on, and the policy says what
    happens.
    """
    output = SimpleNamespace()
    if broken is not None:
        setattr(output, ANSWERS, broken)
    watches.take_in(SimpleNamespace(scheduled_spec_decode_tokens={}), output, [cases["r"]])
    found = crossed(cases)
    assert found["r"].verdict.unscored is not None
    assert actions(found) == {"r": Action.FLAG}
    assert cases["r"].answer_begin is None
    watches.take_in(SimpleNamespace(scheduled_spec_decode_tokens={}), output, [cases["r"]])
    assert crossed(cases) == {}  # it is told of once, and not watched on
