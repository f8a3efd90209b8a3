"""The gate on vLLM's own scheduler, given what a faulty worker or a route around the voice gives it."""

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from guard.verdict import Action, Unscored, Verdict
from serving.core.gate import guarded_scheduler
from serving.launch.server import SCHEDULER
from serving.wire import EXTRA, GAPS, ORDERS, SCORES, STOP_BLOCKED, VERDICT, stop_reason
from serving.wire import PROMPT as PROMPT_NAME
from tests.serving.lab import MODEL

BLOCK, PROMPT = 16, list(range(5, 5 + 64))
HARMLESS, HARMFUL = [[0.0]], [[3.0]]
LISTENED = {EXTRA: {PROMPT_NAME: "a name that nobody guesses"}}


class Gate:
    """A gate without workers: what they would have sent is given."""

    def __init__(self, guard):
        flags = {"max_model_len": 256, "gpu_memory_utilization": 0.1, "scheduler_cls": SCHEDULER}
        config = EngineArgs(model=str(MODEL), additional_config=guard.to_vllm(), **flags).create_engine_config()
        config.cache_config.num_gpu_blocks = 64
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
        cache = KVCacheConfig(num_blocks=64, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler = guarded_scheduler(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )

    def ask(self, name, scores, *, extra=None, prompt=PROMPT, gap=None):
        """Run a prompt to its first token, with these scores or reason from its worker; None if they never arrive.

        `gap` is where its worker found the first token without a score.

        Returns (verdict, how many tokens left, how many of the prompt came from the prefix cache).
        """
        params = SamplingParams(max_tokens=1, extra_args=extra)
        self.scheduler.add_request(Request(name, prompt, params, None, block_hasher=self.hasher))
        step = self.scheduler.schedule()
        assert list(getattr(step, ORDERS).due) == [name]
        [new] = step.scheduled_new_reqs
        output = ModelRunnerOutput([name], {name: 0}, sampled_token_ids=[[7]])
        setattr(output, SCORES, {} if scores is None else {name: scores})
        if gap is not None:
            setattr(output, GAPS, {name: gap})
        [client] = self.scheduler.update_from_output(step, output).values()
        [last] = client.outputs
        verdict = Verdict.from_wire(last.kv_transfer_params[EXTRA][VERDICT])
        given = (extra or {}).get(EXTRA)
        signal = stop_reason(STOP_BLOCKED, given.get(PROMPT_NAME) if isinstance(given, dict) else None)
        assert (last.stop_reason == signal) == (verdict.action is Action.BLOCK)
        return verdict, len(last.new_token_ids), new.num_computed_tokens


@pytest.fixture
def gate(config):
    """A maker of gates with a policy that blocks `harm` above 2 and does as told with what has no score."""

    def gate(on_unscored="block", *, behind_middleware=True):
        guard = config(
            f"name: p\nversion: '1'\non_unscored: {on_unscored}\n"
            "rules:\n  - {name: harmful, action: block, when: {harm: {above: 2}}}\n"
        )
        return Gate(guard.model_copy(update={"behind_middleware": behind_middleware}))

    return gate


SPOILT = [
    (Unscored.TAP_SILENT.value, Unscored.TAP_SILENT),
    (Unscored.SENSOR_ERROR.value, Unscored.SENSOR_ERROR),
    ([[float("nan")]], Unscored.NOT_FINITE),
    ([[float("inf")]], Unscored.NOT_FINITE),
]
LOST = [
    (None, Unscored.MISSING),
    (Unscored.MISSING.value, Unscored.MISSING),
    ("no reason that anyone knows", Unscored.POLICY_ERROR),
    ([[0.0, 0.0]], Unscored.POLICY_ERROR),
]


@pytest.mark.parametrize("on_unscored", ["block", "flag", "allow"])
@pytest.mark.parametrize(("scores", "reason"), SPOILT + LOST)
def test_whatever_arrives_in_place_of_scores_is_treated_as_the_policy_says(gate, scores, reason, on_unscored):
    """Blocked without a token, or answered; and the next request is judged as ever."""
    made = gate(on_unscored)
    verdict, num_tokens, _ = made.ask("a", scores, extra=LISTENED)
    assert (verdict.unscored, verdict.decision) == (reason, on_unscored)
    assert num_tokens == (0 if on_unscored == "block" else 1)
    assert made.ask("b", HARMLESS, extra=LISTENED)[0].action is Action.ALLOW
    assert made.ask("c", HARMFUL, extra=LISTENED)[0].action is Action.BLOCK


@pytest.mark.parametrize("on_unscored", ["block", "allow"])
@pytest.mark.parametrize(("scores", "reason"), SPOILT)
def test_blocks_without_scores_are_not_shared(gate, scores, reason, on_unscored):
    """The same prompt is computed again after a fault that left its tokens without scores, and shared after that."""
    made = gate(on_unscored)
    shared = [made.ask("a", HARMLESS, extra=LISTENED), made.ask("b", scores, extra=LISTENED)]
    assert [cached for _, _, cached in shared] == [0, 48]
    assert shared[1][0].unscored is reason
    again = [made.ask(name, HARMLESS, extra=LISTENED) for name in "cd"]
    assert [cached for _, _, cached in again] == [0, 48]


@pytest.mark.parametrize(("gap", "cached"), [(0, 0), (15, 0), (16, 16), (40, 32), (63, 48), (None, 0)])
@pytest.mark.parametrize("scores", [[[float("nan")]], Unscored.TAP_SILENT.value])
def test_blocks_before_the_first_token_without_a_score_stay_shared(gate, scores, gap, cached):
    """A prompt that overflows behind a system prompt does not take the system prompt out of everyone's cache."""
    made = gate()
    made.ask("a", HARMLESS, extra=LISTENED)
    made.ask("b", scores, extra=LISTENED, gap=gap)
    assert made.ask("c", HARMLESS, extra=LISTENED)[2] == cached


@pytest.mark.parametrize(("reason", "cached"), [(Unscored.SENSOR_ERROR, 0), (Unscored.TAP_SILENT, 48)])
def test_what_the_workers_forgot_is_shared_with_nobody(gate, reason, cached):
    """After `sensor_error` no slot holds scores: other prompts' blocks are computed again, too.

    Else they are left alone.
    """
    made = gate()
    made.ask("a", HARMLESS, extra=LISTENED)
    made.ask("b", reason.value, extra=LISTENED, prompt=PROMPT[::-1])
    assert made.ask("c", HARMLESS, extra=LISTENED)[2] == cached


def test_blocks_whose_scores_only_got_lost_are_shared(gate):
    """Their slots hold scores: nothing is computed again."""
    made = gate()
    assert made.ask("a", None, extra=LISTENED)[0].unscored is Unscored.MISSING
    assert made.ask("b", HARMLESS, extra=LISTENED)[2] == 48


@pytest.mark.parametrize("extra", [None, {"mine": 1}, {EXTRA: "forged"}, {EXTRA: ["forged"]}])
@pytest.mark.parametrize(
    ("on_unscored", "scores", "action"),
    [
        ("block", HARMLESS, Action.BLOCK),
        ("allow", HARMLESS, Action.ALLOW),
        ("flag", HARMLESS, Action.FLAG),
        ("allow", HARMFUL, Action.BLOCK),
    ],
)
def test_a_request_past_the_voice_is_unscored(gate, on_unscored, scores, action, extra):
    """Treated as the policy says of those, or as its scores say where that is more; and it tells no scores."""
    verdict, num_tokens, _ = gate(on_unscored).ask("a", scores, extra=extra)
    assert (verdict.unscored, verdict.action, verdict.scores) == (Unscored.BYPASSED, action, {})
    assert num_tokens == (action is not Action.BLOCK)


def test_an_engine_without_a_voice_asks_for_no_mark(gate):
    """Where it is driven without an API server, every request is judged by its scores."""
    assert gate(behind_middleware=False).ask("a", HARMLESS)[0].unscored is None
