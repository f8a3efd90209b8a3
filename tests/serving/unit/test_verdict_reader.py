"""The reader hears each verdict once and leaves no trace of it in vLLM's outputs."""

import asyncio
import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from guard.decide import bind
from guard.journal import Journal
from guard.metrics import GuardMetrics
from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.rollout import InForce, Rollout
from guard.verdict import Action, Unscored, Verdict
from serving.api.exchange import Exchange, current
from serving.api.verdict_reader import VerdictReader
from serving.wire import CANARY, EXTRA, POLICY, PROMPT, STOP_ANSWER, STOP_BLOCKED, VERDICT, stop_reason

RULE = {"name": "r", "action": "block", "when": {"harm": {"above": 2}}}


def bound(on_unscored="block"):
    """A policy that blocks above 2, and does this with what has no score."""
    settings = {"name": "p", "version": "1", "rules": [RULE], "response": {"message": "No."}}
    policy = Policy.model_validate(settings | {"on_unscored": on_unscored})
    return bind(policy, ["harm"], np.zeros((0, 1), dtype=np.float32))


BOUND = bound()
DIGEST = BOUND.policy.digest
ROLLOUT = Rollout(PolicySet(BOUND))


def journal_of(metrics):
    """A journal with nothing but metrics."""
    return Journal(metrics, on_drop=metrics.observe_unrecorded)


@pytest.fixture
def registry():
    """A registry of our own."""
    return CollectorRegistry()


@pytest.fixture
def exchange():
    """The exchange in force while the test runs."""
    opened = Exchange(PolicySet(BOUND))
    token = current.set(opened)
    yield opened
    current.reset(token)


@pytest.fixture
def hear(registry, outputs):
    """A maker of (listening `generate`, what vLLM would see as parameters, ids of closed requests)."""
    metrics = GuardMetrics(registry, ROLLOUT)
    reader = VerdictReader(InForce(ROLLOUT), journal_of(metrics))

    def make(*produced, fault=None, policy=BOUND):
        closed = []
        if (opened := current.get()) is not None:
            opened.policies = PolicySet(policy)

        async def generate(prompt, params, request_id, **options):
            generate.params = params
            try:
                for item in produced:
                    yield client.output_processor.arrive(item, params)
                if fault:
                    raise fault
            finally:
                closed.append(request_id)

        client = SimpleNamespace(generate=generate, output_processor=outputs.processor())
        (reader if policy is BOUND else VerdictReader(InForce(Rollout(PolicySet(policy))), journal_of(metrics))).attach(
            client
        )
        return client.generate, lambda: generate.params, closed

    return make


async def drain(generator):
    """All that a generator yields."""
    return [item async for item in generator]


def counted(registry, action):
    """How many prompts were counted with this decision, in enforce mode."""
    return registry.get_sample_value("foreguard_requests_total", {"action": action, "mode": "enforce"})


def unscored(registry, reason):
    """How many prompts were counted as unscored for this reason."""
    return registry.get_sample_value("foreguard_unscored_total", {"reason": reason.value})


def aborted(registry):
    """How many prompts were counted as aborted."""
    return unscored(registry, Unscored.ABORTED)


async def test_verdict_is_taken_and_other_parameters_stay(hear, exchange, outputs):
    """A client that is shown `kv_transfer_params` finds its connector's keys there, and no verdict."""
    verdict = BOUND.judge([1.0])
    listening, _, _ = hear(
        outputs.one(outputs.completion(), verdict=verdict, finished=False),
        outputs.one(outputs.completion(), remote_host="a"),
    )
    first, last = await drain(listening("p", SamplingParams(), "id"))
    assert first.kv_transfer_params is None
    assert last.kv_transfer_params == {"remote_host": "a"}
    assert exchange.prompts[0].verdict == verdict


async def test_heard_though_vllm_hands_on_another_output(registry, exchange, outputs):
    """Merged into a later output, or left out of an answer that is not streamed: the verdict was noted before."""
    verdict, processor = BOUND.judge([1.0]), outputs.processor()

    async def generate(prompt, params, request_id):
        processor.arrive(outputs.one(outputs.completion(), verdict=verdict, finished=False), params)
        yield outputs.one(outputs.completion())

    client = SimpleNamespace(generate=generate, output_processor=processor)
    VerdictReader(InForce(ROLLOUT), journal_of(GuardMetrics(registry, ROLLOUT))).attach(client)
    await drain(client.generate("p", SamplingParams(), "id"))
    assert exchange.prompts[0].verdict == verdict
    assert counted(registry, "allow") == 1
    assert registry.get_sample_value("foreguard_score_count", {"probe": "harm", "adapter": ""}) == 1
    assert aborted(registry) == 0


async def test_prompts_of_one_name_are_told_apart(hear, exchange, outputs):
    """Two requests may come under one id, which clients choose (`X-Request-Id`): each gets its own verdict."""
    allowed, blocked = BOUND.judge([1.0]), BOUND.judge([3.0])
    params = SamplingParams()
    first, _, _ = hear(outputs.one(outputs.completion(), verdict=allowed))
    second, _, _ = hear(outputs.one(outputs.completion(blocked=True), verdict=blocked))
    both = first("p", params, "id"), second("q", params, "id")
    await asyncio.gather(*map(drain, both))
    assert [prompt.verdict for prompt in exchange.prompts] == [allowed, blocked]


async def test_a_verdict_on_a_prompt_that_nobody_waits_for_is_not_counted(registry, outputs):
    """Its client has left, and it was counted then."""
    processor, seen = outputs.processor(), []

    async def generate(prompt, params, request_id):
        seen.append(params)
        yield outputs.one(finished=False)

    client = SimpleNamespace(generate=generate, output_processor=processor)
    VerdictReader(InForce(ROLLOUT), journal_of(GuardMetrics(registry, ROLLOUT))).attach(client)
    await drain(client.generate("p", SamplingParams(), "id"))
    late = processor.arrive(outputs.one(outputs.completion(), verdict=BOUND.judge([1.0])), *seen)
    assert late.kv_transfer_params is None
    assert (aborted(registry), counted(registry, "allow")) == (1, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_n_completions_are_one_prompt(hear, exchange, outputs, registry, order):
    """Each brings its own verdict, in any order: the most severe is what the client is told and what is counted,
    once.
    """
    allowed, blocked = BOUND.judge([1.0]), BOUND.judge([3.0])
    produced = [
        outputs.one(outputs.completion(0), verdict=allowed, finished=False),
        outputs.one(outputs.completion(1, blocked=True), verdict=blocked, finished=False),
        outputs.one(outputs.completion(2), verdict=allowed, finished=False),
    ]
    listening, _, _ = hear(*(produced[place] for place in order))
    await drain(listening("p", SamplingParams(n=3), "id"))
    (prompt,) = exchange.prompts
    assert (prompt.n, prompt.blocked, prompt.passed) == (3, {1}, True)
    assert exchange.decision == "block"
    assert exchange.verdict.event_id == (blocked if order[0] == 1 else allowed).event_id, (
        "the id in the headers changed"
    )
    assert (counted(registry, "allow"), counted(registry, "block")) == (0, 1)


async def test_a_client_that_leaves_before_all_completions_are_decided_is_counted(hear, exchange, outputs, registry):
    """By the most severe verdict that had come."""
    listening, _, _ = hear(
        outputs.one(outputs.completion(0), verdict=BOUND.judge([1.0]), finished=False),
        outputs.one(outputs.completion(1), verdict=BOUND.judge([1.0]), finished=False),
    )
    generator = listening("p", SamplingParams(n=2), "id")
    await anext(generator)
    assert counted(registry, "allow") == 0
    await generator.aclose()
    assert counted(registry, "allow") == 1
    assert aborted(registry) == 0


async def test_each_input_of_a_session_has_a_verdict_of_its_own(hear, exchange, outputs, registry):
    """The one on what was said last stands, be it milder, and every one is counted."""
    verdicts = [
        replace(BOUND.judge([score]), action=action) for score, action in ((1.0, Action.STEER), (0.0, Action.ALLOW))
    ]
    produced = [outputs.one(outputs.completion(), verdict=each, finished=False) for each in verdicts]
    for item in produced:
        item.prompt_logprobs = list(LOGPROBS)
    listening, _, _ = hear(*produced)
    found = await drain(listening("p", SamplingParams(prompt_logprobs=2), "id"))
    assert exchange.verdict == verdicts[-1]
    # vLLM's output may hold the log-probabilities of all inputs so far: what one may not show, the next ones may not.
    assert [each.prompt_logprobs for each in found] == [[None] * 3] * 2
    assert registry.get_sample_value("foreguard_score_count", {"probe": "harm", "adapter": ""}) == 2


async def test_a_later_verdict_that_cannot_be_read_is_none_either(hear, exchange, outputs, registry, monkeypatch):
    """Of a session's input or of a further completion: what was decided before does not speak for it."""
    read = Verdict.from_wire
    broken = iter([False, True])
    monkeypatch.setattr(
        "serving.api.verdict_reader.Verdict.from_wire", lambda wire: 1 / 0 if next(broken) else read(wire)
    )
    verdict = BOUND.judge([1.0])
    listening, _, closed = hear(
        *(outputs.one(outputs.completion(text=text), verdict=verdict, finished=False) for text in ("one", "two"))
    )
    found = await drain(listening("p", SamplingParams(), "id"))
    assert [each.outputs[0].text for each in found] == ["one", "No."]
    assert unscored(registry, Unscored.NO_VERDICT) == 1
    assert closed == ["id"]


async def test_blocked_completion_says_the_message(hear, exchange, outputs):
    """VLLM's own response code then writes the operator's message with `content_filter`, and no stop reason of ours."""
    listening, _, _ = hear(outputs.one(outputs.completion(blocked=True), verdict=BOUND.judge([3.0])))
    (found,) = await drain(listening("p", SamplingParams(), "id"))
    (completion,) = found.outputs
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("No.", "content_filter", None)
    assert exchange.prompts[0].num_tokens == 3
    assert exchange.blocked


SAID = {
    "a word": "foreguard",
    "the reason of a block": STOP_BLOCKED,
    "the reason of an end": STOP_ANSWER,
    "the reason of a nameless prompt": stop_reason(STOP_BLOCKED, None),
    "a guessed name": stop_reason(STOP_BLOCKED, 0),
    "another guess": stop_reason(STOP_ANSWER, "0" * 32),
    "a canary's name": stop_reason(STOP_BLOCKED, CANARY),
    "a finish reason": "content_filter",
    "vLLM's own": "repetition_detected",
    "nothing": "",
    "a token": 7,
}


@pytest.mark.parametrize("has_tokens", [True, False])
@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
async def test_no_client_can_say_what_the_gate_says(hear, exchange, outputs, registry, said, has_tokens):
    """A stop string or stop token is reported as what it is, though spelt as the gate's reasons begin: no block, no
    end.
    """
    item = outputs.one(outputs.completion(), verdict=BOUND.judge([0.0]))
    (completion,) = item.outputs
    completion.stop_reason, completion.finish_reason = said, "stop"
    if not has_tokens:
        completion.token_ids, completion.text = [], ""
    expected = copy.copy(completion)
    listening, _, _ = hear(item)
    (found,) = await drain(listening("p", SamplingParams(stop=["a"]), "id"))
    assert found.outputs == [expected]
    assert exchange.prompts[0].passed
    assert not exchange.any_blocked
    assert (exchange.decision, counted(registry, "block")) == ("allow", 0)


async def test_what_the_gate_said_of_another_prompt_says_nothing_of_this(hear, exchange, outputs):
    """A name that leaked, by whatever way, is of no use for any other prompt, not even of the same client."""
    first, params, _ = hear(outputs.one(outputs.completion(), verdict=BOUND.judge([0.0])))
    await drain(first("p", SamplingParams(), "id"))
    leaked = params().extra_args[EXTRA][PROMPT]
    item = outputs.one(outputs.completion(), verdict=BOUND.judge([0.0]))
    item.outputs[0].stop_reason = stop_reason(STOP_BLOCKED, leaked)
    second, params, _ = hear(item)
    (found,) = await drain(second("p", SamplingParams(), "id"))
    assert found.outputs[0].text == "hello"
    assert params().extra_args[EXTRA][PROMPT] != leaked


async def test_a_client_that_leaves_is_counted(hear, exchange, outputs, registry):
    """Gone before the verdict: unscored, aborted.

    Gone after it: counted by its verdict only. vLLM's generator is closed.
    """
    early, _, closed = hear(outputs.one(finished=False), outputs.one(outputs.completion()))
    generator = early("p", SamplingParams(), "early")
    await anext(generator)
    await generator.aclose()
    assert aborted(registry) == 1
    late, _, closed_late = hear(
        outputs.one(outputs.completion(), verdict=BOUND.judge([0.0])), outputs.one(outputs.completion())
    )
    generator = late("p", SamplingParams(), "late")
    await anext(generator)
    await generator.aclose()
    assert aborted(registry) == 1
    assert counted(registry, "allow") == 1
    assert (closed, closed_late) == (["early"], ["late"])


async def test_a_client_that_leaves_twice_is_counted(registry, outputs):
    """Cancelled again while vLLM is still told that nobody waits: the prompt is counted all the same, once."""

    async def generate(prompt, params, request_id):
        try:
            yield RequestOutput("id", None, [], None, [], finished=False)
        finally:
            await asyncio.sleep(60)

    client = SimpleNamespace(generate=generate, output_processor=outputs.processor())
    VerdictReader(InForce(ROLLOUT), journal_of(GuardMetrics(registry, ROLLOUT))).attach(client)
    generator = client.generate("p", SamplingParams(), "id")
    await anext(generator)
    closing = asyncio.create_task(generator.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert aborted(registry) == 1


async def test_a_request_that_fails_is_counted_and_fails(hear, exchange, registry):
    """The engine's exception reaches the server, and the prompt is counted as never scored."""
    listening, _, _ = hear(fault=ValueError("too long"))
    with pytest.raises(ValueError, match="too long"):
        await drain(listening("p", SamplingParams(), "id"))
    assert aborted(registry) == 1


async def test_what_a_client_puts_under_the_guard_s_key_is_thrown_away(hear, exchange, outputs):
    """`vllm_xargs` reaches `extra_args`: a forged ask is scrubbed, the client's other keys stay."""
    listening, params, _ = hear(outputs.one(outputs.completion(), verdict=BOUND.judge([0.0])))
    forged = SamplingParams(extra_args={EXTRA: {"shadow": True, "caller": "a" * 64}, "mine": 1})
    await drain(listening("p", forged, "id"))
    assert params().extra_args == {"mine": 1, EXTRA: {PROMPT: exchange.prompts[0].name, POLICY: DIGEST}}
    await drain(listening("p", SamplingParams(extra_args={EXTRA: {"shadow": True, PROMPT: 7}}), "id"))
    assert params().extra_args == {EXTRA: {PROMPT: exchange.prompts[1].name, POLICY: DIGEST}}


async def test_what_the_middleware_heard_goes_to_the_gate(hear, exchange, outputs):
    """The exchange's own ask replaces whatever the client put there."""
    exchange.asked = {"tighten": True}
    listening, params, _ = hear(outputs.one(outputs.completion(), verdict=BOUND.judge([0.0])))
    await drain(listening("p", SamplingParams(extra_args={EXTRA: {"shadow": True}}), "id"))
    assert params().extra_args == {EXTRA: {"tighten": True, PROMPT: exchange.prompts[0].name, POLICY: DIGEST}}


async def test_routes_without_an_exchange_are_counted_and_scrubbed(hear, outputs, registry):
    """A generating route that the middleware does not know is still counted, blocked and scrubbed."""
    listening, params, _ = hear(outputs.one(outputs.completion(blocked=True), verdict=BOUND.judge([3.0])))
    (found,) = await drain(listening("p", SamplingParams(extra_args={EXTRA: {"shadow": True}}), "id"))
    assert found.outputs[0].text == "No."
    assert params().extra_args[EXTRA].keys() == {PROMPT, POLICY}
    assert counted(registry, "block") == 1


async def test_several_prompts_of_one_request(hear, exchange, outputs, registry):
    """Each call is one prompt; the request is decided when the last of them is."""
    listening, other = (hear(outputs.one(outputs.completion(), verdict=BOUND.judge([0.0])))[0] for _ in range(2))
    first, second = listening("p", SamplingParams(), "id-0"), other("q", SamplingParams(), "id-1")
    await drain(first)
    assert [prompt.request_id for prompt in exchange.prompts] == ["id-0", "id-1"]
    assert not exchange.decided
    await drain(second)
    assert exchange.decided
    assert counted(registry, "allow") == 2


@pytest.mark.parametrize("kind", ["streamed", "whole"])
@pytest.mark.parametrize("n", [1, 2])
async def test_an_answer_without_a_verdict_is_blocked(hear, exchange, outputs, registry, n, kind):
    """No gate in the engine: not a token leaves, the engine is told to stop, and each completion says the message."""
    answers = [outputs.one(outputs.completion(index), finished=False) for index in range(n)]
    whole = [outputs.one(*[outputs.completion(index) for index in range(n)])]
    listening, _, closed = hear(*(whole if kind == "whole" else [*answers, *answers]))
    (found,) = await drain(listening("p", SamplingParams(n=n), "id"))
    assert [(each.index, each.text, each.token_ids) for each in found.outputs] == [(i, "No.", []) for i in range(n)]
    assert {each.finish_reason for each in found.outputs} == {"content_filter"}
    assert found.finished
    assert exchange.blocked
    assert closed == ["id"]
    assert unscored(registry, Unscored.NO_VERDICT) == 1
    assert counted(registry, "block") == 1
    assert aborted(registry) == 0


@pytest.mark.parametrize("action", ["flag", "allow"])
async def test_an_answer_without_a_verdict_passes_where_the_policy_says_so(hear, exchange, outputs, registry, action):
    """It is marked and counted as what it is, once."""
    listening, _, _ = hear(*[outputs.one(outputs.completion())] * 2, policy=bound(action))
    assert [found.outputs[0].text for found in await drain(listening("p", SamplingParams(), "id"))] == ["hello"] * 2
    assert exchange.decision == "unscored"
    assert exchange.verdict.decision == action
    assert unscored(registry, Unscored.NO_VERDICT) == counted(registry, action) == 1


async def test_a_client_may_tighten_what_has_no_verdict(hear, exchange, outputs):
    """As it may tighten what has no score."""
    exchange.asked = {"tighten": True}
    listening, _, _ = hear(outputs.one(outputs.completion()), policy=bound("flag"))
    await drain(listening("p", SamplingParams(), "id"))
    assert exchange.blocked


async def test_a_verdict_that_cannot_be_read_is_none(hear, exchange, outputs, registry, monkeypatch):
    """It is one prompt's fault: what the gate had blocked stays blocked, and outputs of others are processed as
    ever.
    """
    monkeypatch.setattr("serving.api.verdict_reader.Verdict.from_wire", lambda _wire: 1 / 0)
    for blocked in (False, True):
        item = outputs.one(outputs.completion(blocked=blocked), verdict=BOUND.judge([1.0]))
        listening, _, _ = hear(item, policy=bound("allow"))
        (found,) = await drain(listening("p", SamplingParams(), "id"))
        assert found.outputs[0].text == ("No." if blocked else "hello")
        assert exchange.decision == "unscored"
    assert unscored(registry, Unscored.NO_VERDICT) == 2


async def test_an_end_without_a_token_needs_no_verdict(hear, exchange, outputs, registry):
    """What the engine gives up before it decided has nothing to withhold."""
    ended = outputs.one(outputs.completion(text=""))
    ended.outputs[0].token_ids = []
    listening, _, _ = hear(ended)
    assert await drain(listening("p", SamplingParams(), "id")) == [ended]
    assert aborted(registry) == 1


@pytest.mark.parametrize("broken", ["observe", "give_up"])
async def test_what_cannot_be_counted_is_treated_as_if_it_were(hear, exchange, outputs, registry, monkeypatch, broken):
    """A verdict holds whether the metrics can be written or not, and that they could not is counted if it can be."""

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(GuardMetrics, broken, full)
    blocked = outputs.one(outputs.completion(blocked=True), verdict=BOUND.judge([3.0]))
    listening, _, closed = hear(*([blocked] if broken == "observe" else []))
    assert [found.outputs[0].text for found in await drain(listening("p", SamplingParams(), "id"))] == (
        ["No."] if broken == "observe" else []
    )
    assert closed == ["id"]
    assert registry.get_sample_value("foreguard_errors_total", {"type": "unrecorded"}) == 1


async def test_the_adapter_names_the_model(hear, exchange, outputs):
    """A LoRA adapter that answers gives its name to the refusal."""
    listening, _, _ = hear(outputs.one(outputs.completion(), verdict=BOUND.judge([0.0])))

    class Adapter:
        lora_name = "tuned"

    await drain(listening("p", SamplingParams(), "id", lora_request=Adapter()))
    assert exchange.prompts[0].model == "tuned"


LOGPROBS = [None, {2: Logprob(-0.5)}, {3: Logprob(-1.5), 9: Logprob(-0.25)}]


@pytest.mark.parametrize("scores", [[3.0], [1.0]], ids=["blocked", "allowed"])
@pytest.mark.parametrize("echoed", [False, True])
async def test_a_blocked_prompt_shows_no_number_of_the_model_s(hear, exchange, outputs, scores, echoed):
    """Its log-probabilities have the length that clients expect: null, or if echoed a number that says nothing."""
    blocked = scores == [3.0]
    item = outputs.one(outputs.completion(blocked=blocked), verdict=BOUND.judge(scores))
    item.prompt_logprobs = list(LOGPROBS)
    item.prompt_token_id_logprobs = np.array([-0.5, -0.25], dtype=np.float32)
    listening, _, _ = hear(item)
    params = SamplingParams(prompt_logprobs=2, logprobs=2 if echoed else None)
    (found,) = await drain(listening("p", params, "id"))
    if not blocked:
        assert found.prompt_logprobs == LOGPROBS
        assert found.prompt_token_id_logprobs.tolist() == [-0.5, -0.25]
        return
    floor = [{token: Logprob(-9999.0)} for token in (1, 2, 3)]
    assert found.prompt_logprobs == (floor if echoed else [None] * 3)
    assert set(found.prompt_token_id_logprobs.tolist()) == {-9999.0}


@pytest.mark.parametrize("action", [Action.BLOCK, Action.STEER, Action.ALLOW])
async def test_a_stopped_prompt_shows_no_routing_either(hear, exchange, outputs, action):
    """Which experts its tokens went to is the model's, too; of a prompt that passes it is vLLM's to return."""
    item = outputs.one(
        outputs.completion(blocked=action is Action.BLOCK), verdict=replace(BOUND.judge([1.0]), action=action)
    )
    item.outputs[0].routed_experts = np.ones((3, 2, 1), dtype=np.int32)
    listening, _, _ = hear(item)
    (found,) = await drain(listening("p", SamplingParams(), "id"))
    assert (found.outputs[0].routed_experts is None) is (action is not Action.ALLOW)


async def test_a_steered_prompt_shows_none_either(hear, exchange, outputs):
    """The pass that gave them was not steered: they would tell what the model had said otherwise."""
    item = outputs.one(outputs.completion(), verdict=replace(BOUND.judge([1.0]), action=Action.STEER))
    item.prompt_logprobs = list(LOGPROBS)
    listening, _, _ = hear(item)
    (found,) = await drain(listening("p", SamplingParams(prompt_logprobs=2), "id"))
    assert found.prompt_logprobs == [None] * 3


async def test_the_canary_is_not_listened_to(registry, outputs):
    """Its verdict stays on the output, for the self-test, and is not counted."""
    processor = outputs.processor()
    VerdictReader(InForce(ROLLOUT), journal_of(GuardMetrics(registry, ROLLOUT))).attach(
        SimpleNamespace(generate=None, output_processor=processor)
    )
    verdict = BOUND.judge([1.0])
    item = outputs.one(outputs.completion(), verdict=verdict)
    heard = processor.arrive(item, SamplingParams(extra_args={EXTRA: {PROMPT: CANARY}}))
    assert heard.kv_transfer_params[EXTRA][VERDICT] == verdict.to_wire()
    assert counted(registry, "allow") == 0


@pytest.mark.parametrize(("scores", "scored"), [([1.0], 1), (Unscored.MISSING, 0)])
async def test_who_watches_the_engine_is_told_of_scored_prompts(registry, outputs, scores, scored):
    """A prompt without a score is no sign that the guard sees."""
    told, processor = [], outputs.processor()
    reader = VerdictReader(
        InForce(ROLLOUT),
        journal_of(GuardMetrics(registry, ROLLOUT)),
        on_scored=lambda: told.append(1),
    )

    async def generate(prompt, params, request_id):
        yield processor.arrive(outputs.one(outputs.completion(), verdict=BOUND.judge(scores)), params)

    client = SimpleNamespace(generate=generate, output_processor=processor)
    reader.attach(client)
    await drain(client.generate("p", SamplingParams(), "id"))
    assert len(told) == scored


@pytest.mark.parametrize("blocks", [True, False])
async def test_a_verdict_by_another_policy_is_none(hear, exchange, outputs, registry, caplog, blocks):
    """The engine and this process read other files: nothing that it decided holds, and the log says which is which."""
    another = bind(
        BOUND.policy.model_validate(BOUND.policy.model_dump() | {"version": "2"}),
        ["harm"],
        np.zeros((0, 1), np.float32),
    )
    decided = another.judge([9.0 if blocks else 0.0])
    generate, _, _ = hear(outputs.one(outputs.completion(blocked=blocks), verdict=decided))
    [seen] = await drain(generate("prompt", SamplingParams(), "r"))
    assert exchange.verdict.unscored is Unscored.NO_VERDICT
    assert exchange.blocked
    assert seen.outputs[0].text == "No."
    assert unscored(registry, Unscored.NO_VERDICT) == 1
    assert "another policy" in caplog.text
    assert another.policy.digest in caplog.text
