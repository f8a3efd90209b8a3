"""Steering in vLLM's real scheduler: a request that may undo it is blocked, and each decision steers what it is
about.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

from guard.verdict import Action
from probes.artifact import BENIGN_ANSWERS, HARMFUL_ANSWERS, Artifact
from probes.manifest import SteeringVector, Watch
from probes.readout import Readout
from serving.core.constraints import constraint_of
from serving.wire import ANSWERS, EXTRA, PROMPT, AnswerTokens
from tests.serving.stepped import BLOCK, Stepped

POLICY = """\
name: p
version: "1"
mode: {mode}
rules:
  - {{name: doubtful, action: steer, when: {{harm: {{above: 1}}}}}}
answer_rules:
  - {{name: drifting, action: steer, when: {{peak: {{above: 1}}}}}}
steering: {{vector: refusal, strength: 0.5{constrained}}}
callers:
  - {{name: team, key_sha256: {key}, may_shadow: true}}
"""
KEY = "c" * 64

CONSTRAINTS = {
    "structured_outputs": [
        StructuredOutputsParams(choice=["yes"]),
        StructuredOutputsParams(regex="Sure.*"),
        StructuredOutputsParams(json={"type": "object"}),
        StructuredOutputsParams(json_object=True),
        StructuredOutputsParams(grammar='root ::= "yes"'),
        StructuredOutputsParams(structural_tag="{}"),
    ],
    "allowed_token_ids": [[5], list(range(90))],
    "bad_words": [["I"], ["I cannot", "Sorry"]],
    "logit_bias": [{5: -100.0}, {5: 0.5}],
    "min_tokens": [1, 8],
    "ignore_eos": [True],
    "trace_decode_token_ids": [[5, 6]],
    "repetition_penalty": [0.01, 0.8, 1.21, 1.3, 50.0],
}
"""What undoes steering, by field."""

LEFT_ALONE = {
    "n": [3],
    "presence_penalty": [2.0],  # of the answer's own tokens, and by 2 at most: a refusal's first word is not among them
    "frequency_penalty": [2.0],
    "repetition_penalty": [1.0, 1.05, 1.2],  # what models' own generation configurations ask for
    "temperature": [0.0, 2.0],
    "watermarking": [True],
    "top_p": [0.1],
    "top_k": [1],
    "min_p": [0.5],
    "seed": [7],
    "stop": ["I", ["I cannot"]],  # an end is no answer
    "stop_token_ids": [[5]],
    "max_tokens": [1],
    "logprobs": [3],  # told, not chosen
    "prompt_logprobs": [1],
    "prompt_logprob_token_ids": [],
    "prompt_logprob_start": [],
    "logprob_token_ids": [],
    "flat_logprobs": [True],
    "detokenize": [False],
    "skip_special_tokens": [False],
    "spaces_between_special_tokens": [False],
    "include_stop_str_in_output": [True],
    "output_kind": [],
    "stream_interval": [3],
    "skip_clone": [True],
    "output_text_buffer_length": [],
    "extra_args": [{"mine": 1}],  # for logits processors of the operator's own
    "skip_reading_prefix_cache": [True],
    "thinking_token_budget": [],  # ends the thought, not the answer
    "repetition_detection": [],
    "routed_experts_prompt_start": [],
}
"""What does not, and why where it is not plain: values to try, where it can be set here."""


def test_every_field_of_a_request_is_in_one_of_the_tables():
    """A field that a new vLLM has is decided about before it is served."""
    fields = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    assert fields - CONSTRAINTS.keys() - LEFT_ALONE.keys() == set()


@pytest.mark.parametrize(("field", "given"), [(field, each) for field in CONSTRAINTS for each in CONSTRAINTS[field]])
def test_what_may_leave_no_refusal_is_a_constraint(field, given):
    """By whichever field."""
    if field not in SamplingParams.__struct_fields__:
        pytest.skip(f"this vLLM has no {field}")
    params = SamplingParams()
    setattr(params, field, given)
    assert constraint_of(params) == field


@pytest.mark.parametrize(("field", "given"), [(field, each) for field in LEFT_ALONE for each in LEFT_ALONE[field]])
def test_what_leaves_a_refusal_is_none(field, given):
    """An ordinary request is steered."""
    params = SamplingParams()
    setattr(params, field, given)
    assert constraint_of(params) is None


@pytest.mark.parametrize(
    "empty", [{"bad_words": []}, {"logit_bias": {}}, {"min_tokens": 0}, {"structured_outputs": None}]
)
def test_an_empty_constraint_is_none(empty):
    """As clients send it that fill in every key."""
    assert constraint_of(SamplingParams(**empty)) is None


@pytest.fixture
def artifact(artifact):
    """The artifact, with a steering vector and a watch: its probe's highest token score so far."""
    made = Artifact.load(artifact)
    vector = SteeringVector(name="refusal", method="m", layers=(0,), norm=1.0, cos_refusal=1.0)
    watch = Watch(name="peak", probe="harm", readout=Readout(kind="swim", window=1), max_tokens=8)
    tensors = {
        "steering.refusal.vector": torch.ones(1, 2),
        "watch.peak.centre": torch.zeros(8),
        "watch.peak.spread": torch.ones(8),
        BENIGN_ANSWERS: torch.zeros(4, 1),
        HARMFUL_ANSWERS: torch.ones(3, 1),
    }
    manifest = made.manifest.model_copy(update={"steering": (vector,), "watches": (watch,)})
    Artifact(manifest, {**made.tensors, **tensors}).save(artifact)
    return artifact


class Watched(Stepped):
    """Its workers read 0 of each answer's tokens, or what `answers` says of their request."""

    def __init__(self, guard, **args):
        super().__init__(guard, max_num_seqs=8, **args)
        self.answers: dict[str, float] = {}

    def _output(self, step, orders):
        output = super()._output(step, orders)
        names, firsts, scores = list(orders.watched), [], []
        for name in names:
            request = self.scheduler.requests[name]
            firsts.append(request.num_computed_tokens - 1)
            begun = request.num_computed_tokens > request.num_prompt_tokens
            scores.append([self.answers.get(name, 0.0)] if begun else [])
        counts = np.array([len(own) for own in scores], dtype=np.int64)
        flat = np.array([each for own in scores for each in own], dtype=np.float32).reshape(-1, 1)
        setattr(output, ANSWERS, AnswerTokens(names, np.array(firsts, dtype=np.int64), counts, flat))
        return output


@dataclass
class Case:
    """How one request went."""

    steered: bool
    tokens: int
    verdict: dict


@pytest.fixture
def run(config):
    """A maker of (how a request went) under a policy that steers prompts and answers above 1."""

    def run(score, answer=0.0, *, mode="enforce", constrained="", more="", extra=None, asynchronous=False, **params):
        guard = config(POLICY.format(mode=mode, constrained=constrained, key=KEY) + more)
        stepped = Watched(guard, asynchronous=asynchronous, under_way=2 if asynchronous else 1)
        stepped.scores, stepped.answers = {"r": score}, {"r": answer}
        stepped.add("r", range(40), max_tokens=5, extra_args={EXTRA: {PROMPT: "name", **(extra or {})}}, **params)
        steered = False
        for _ in range(20):
            _, orders = stepped.step()
            steered = steered or "r" in orders.steering
        assert not stepped.scheduler.has_unfinished_requests()
        return Case(steered, len(stepped.tokens["r"]), stepped.told["r"])

    return run


GIVEN = {"bad_words": ["I"], "min_tokens": 2, "logit_bias": {5: -100.0}, "ignore_eos": True, "repetition_penalty": 9.0}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("field", GIVEN)
@pytest.mark.parametrize("what", ["verdict", "answer"])
def test_a_steered_request_that_may_undo_it_is_blocked(run, what, field, asynchronous):
    """A prompt before its first token, an answer where it crossed, and the verdict says why. Else both are steered."""
    scores = (5.0, 0.0) if what == "verdict" else (0.0, 5.0)
    free = run(*scores, asynchronous=asynchronous)
    assert (free.steered, free.tokens, free.verdict[what]["decision"]) == (True, 5, "steer")
    assert free.verdict[what]["constraint"] is None
    held = run(*scores, asynchronous=asynchronous, **{field: GIVEN[field]})
    told = held.verdict[what]
    assert not held.steered
    assert held.tokens < 5 if what == "answer" else held.tokens == 0
    assert (told["decision"], told["action"], told["constraint"]) == ("block", "block", field)


@pytest.mark.parametrize("what", ["verdict", "answer"])
def test_the_policy_may_steer_all_the_same(run, what):
    """With `constrained: steer`."""
    scores = (5.0, 0.0) if what == "verdict" else (0.0, 5.0)
    found = run(*scores, constrained=", constrained: steer", **GIVEN)
    assert (found.steered, found.tokens, found.verdict[what]["decision"]) == (True, 5, "steer")
    assert found.verdict[what]["constraint"] is None


@pytest.mark.parametrize("shadowed", [{"mode": "shadow"}, {"extra": {"shadow": True, "caller": KEY}}])
@pytest.mark.parametrize("what", ["verdict", "answer"])
def test_in_shadow_mode_it_is_recorded_only(run, what, shadowed):
    """What would have been done is decided, for the whole policy and for a caller who may ask for it: nothing is
    done.
    """
    scores = (5.0, 0.0) if what == "verdict" else (0.0, 5.0)
    found = run(*scores, bad_words=["I"], **shadowed)
    told = found.verdict[what]
    assert (found.steered, found.tokens) == (False, 5)
    assert (told["decision"], told["action"], told["constraint"]) == ("block", "allow", "bad_words")


def test_what_is_judged_beside_is_held_to_the_same(run):
    """A variant that would steer a constrained request is recorded as a block, too, and otherwise as a steer."""
    more = "variants:\n  other: {rules: [{name: other, action: steer, when: {harm: {above: 2}}}]}\nshadow: other\n"
    assert run(5.0, more=more).verdict["verdict"]["beside"]["decision"] == "steer"
    assert run(5.0, more=more, bad_words=["I"]).verdict["verdict"]["beside"]["decision"] == "block"


@pytest.mark.parametrize("tightened", [{}, {"tighten": True}])
def test_other_decisions_are_left_alone(run, tightened):
    """What is allowed is allowed, however constrained; a client that asks for a block is not told of a constraint."""
    assert run(0.0, extra=tightened, **GIVEN).verdict["verdict"]["action"] == "allow"
    found = run(5.0, extra=tightened, **({} if not tightened else GIVEN))
    assert found.verdict["verdict"]["action"] == ("block" if tightened else "steer")
    assert found.verdict["verdict"]["constraint"] is None


def test_a_session_is_steered_as_its_last_input_is_decided(config):
    """A streamed input goes on: the decision on what was asked before does not steer what is asked now, and a new one
    may.
    """
    stepped = Watched(config(POLICY.format(mode="enforce", constrained="", key=KEY)))
    found = []
    for score in (5.0, 0.0, 5.0):
        stepped.scores = {"r": score}
        params = {"extra_args": {EXTRA: {PROMPT: "name"}}}
        stepped.add("r", range(40), max_tokens=3, resumable=True, **params)
        steered = False
        for _ in range(8):
            _, orders = stepped.step()
            steered = steered or "r" in orders.steering
        found.append((steered, stepped.verdicts["r"]["action"]))
    assert found == [(True, "steer"), (False, "allow"), (True, "steer")]
    assert stepped.asked["r"] >= 3


def test_what_is_steered_stays_so_after_a_preemption(config):
    """A steered answer is computed again as steered, and so are its later tokens."""
    stepped = Watched(config(POLICY.format(mode="enforce", constrained="", key=KEY)))
    stepped.scores = {"r": 5.0}
    stepped.add("r", range(2 * BLOCK + 5), max_tokens=8, extra_args={EXTRA: {PROMPT: "name"}})
    after = []
    for number in range(16):
        if number == 4:
            assert stepped.scheduler.reset_prefix_cache(reset_running_requests=True)
        step, orders = stepped.step()
        if number >= 4 and "r" in step.num_scheduled_tokens:
            after.append("r" in orders.steering)
    assert after
    assert all(after)
    assert stepped.verdicts["r"]["action"] == Action.STEER
