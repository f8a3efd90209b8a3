"""The gate: vLLM's scheduler, deciding on each prompt before its first token leaves. Named by `--scheduler-cls`.

It overrides, of `vllm/v1/core/sched/scheduler.py`: `add_request`, `_update_request_as_session`, `schedule`,
`update_from_output`, `_update_request_with_output` (the first sampled token is where a request passes or does not) and
`_free_request`; and calls `_preempt_request`, as `versions` has it, and of `kv_cache_manager` `get_block_ids` and
`evict_blocks`. Under asynchronous scheduling a step is scheduled before the last one's output is here: what a blocked or
steered request had in flight by then is dropped by vLLM itself.

A request with no verdict has no tokens: the gate asks for a verdict at the first sampled token and finds either scores or
a reason why there are none. Nothing that fails upstream can skip it.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from guard.decide import BoundPolicy
from guard.verdict import Action, Unscored, Verdict
from probes.artifact import Artifact
from probes.template import Ending
from serving.config import GuardConfig
from serving.core.answer_watch import Crossing
from serving.core.answer_watches import AnswerWatches
from serving.core.constraints import constraint_of
from serving.core.orders import OrderBook
from serving.core.private_blocks import keep_private
from serving.core.prompt_turns import prompt_turns
from serving.core.versions import DroppingScheduler, prompt_logprobs
from serving.wire import (
    ANSWER,
    EXTRA,
    GAPS,
    PROMPT,
    SCORES,
    STOP_ANSWER,
    STOP_BLOCKED,
    VERDICT,
    stop_reason,
)

logger = init_logger("vllm.foreguard.gate")


@dataclass(frozen=True, slots=True)
class _Step:
    """What the gate needs to know about the output being processed."""

    scores: dict[str, list[list[float]] | str]
    gaps: dict[str, int]
    """Where the first token without a score is, in prompts that are not scored for want of it."""
    prompt_logprobs: tuple[dict[str, Any], ...]
    """Log-probabilities of prompts: of their own tokens, and of tokens that were asked for."""


class GuardedScheduler(DroppingScheduler):
    """A scheduler in which a request's first token waits for its verdict."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = GuardConfig.from_vllm(self.vllm_config.additional_config)
        artifacts = config.load_artifacts()
        self._policies: list[BoundPolicy] = config.bind_policies(artifacts)
        self._strengths = _strengths(self._policies, artifacts)
        self._behind_middleware = config.behind_middleware
        self._adapters = {(each.name, each.path): number for number, each in enumerate(config.adapters, 1)}
        probes = [probe for artifact in artifacts for probe in artifact.manifest.probes]
        self._orders = OrderBook(self, [probe.readout for probe in probes])
        self._templates = [artifact.manifest.template for artifact in artifacts]
        self._endings: dict[str, Ending] = {}
        self._decided: set[str] = set()
        self._undelivered: dict[str, dict[str, Any]] = {}
        self._watches = AnswerWatches(self._policies, artifacts, self.vllm_config)
        self._to_steer: list[Request] = []
        self._held_logprobs: dict[str, list[Any]] = {}
        self._crossings: dict[str, Crossing] = {}
        self._to_act_on: dict[str, Verdict] = {}
        self._is_asked = False
        self._step = _Step({}, {}, ())

    def add_request(self, request: Request) -> None:
        """Take a request in, whose prompt is to be scored."""
        if request.request_id not in self.requests:
            self._ask_for(request)
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: Any) -> None:
        # A streamed input goes on: what was decided was decided on less than is now asked.
        super()._update_request_as_session(session, update)
        self._decided.discard(session.request_id)
        self._to_act_on.pop(session.request_id, None)
        self._crossings.pop(session.request_id, None)
        self._watches.end(session.request_id)
        self._orders.steer_no_more(session)
        self._ask_for(session)

    def _ask_for(self, request: Request) -> None:
        if (subject := self._subject(request)) is not None:
            turns, ending = prompt_turns(request, self._templates[subject])
            self._endings[request.request_id] = ending
            self._orders.open(request, turns, subject)
            prefilled = ending is Ending.PREFILL
            self._watches.begin(request, subject, turns[-1].start if prefilled else request.num_prompt_tokens)

    def _subject(self, request: Request) -> int | None:
        """Return whose probes score the request: 0 is the model itself, None an adapter that has no artifact."""
        adapter = request.lora_request
        # Another folder under a known name is another adapter: vLLM may be told to load one while it runs.
        return 0 if adapter is None else self._adapters.get((adapter.lora_name, Path(adapter.lora_path)))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule a step, with the guard's orders to the workers."""
        step = super().schedule(*args, **kwargs)
        self._orders.give(step, self._watches.asked(step.num_scheduled_tokens))
        return step

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Process a step's output, deciding on every prompt that it finished."""
        output = model_runner_output
        # Kept until they are acted on, which is when their request has its next token.
        self._crossings.update(self._watches.take_in(scheduler_output, output, self._answering, self._judge_answer))
        self._step = _Step(getattr(output, SCORES, {}), getattr(output, GAPS, {}), prompt_logprobs(output))
        self._decide_ahead(output)
        if self._all_pass(scheduler_output):
            # As vLLM's: a call for each request would be most of what the guard costs in such a step.
            self._update_request_with_output = super()._update_request_with_output  # type: ignore[method-assign]
        else:
            self.__dict__.pop("_update_request_with_output", None)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._to_steer:
            self._resume_steered(request)
        self._to_steer.clear()
        if self._undelivered and self._is_asked:
            self._deliver(outputs)
        return outputs

    def _decide_ahead(self, output: ModelRunnerOutput) -> None:
        """Decide on the prompts that a step finished and whose first token vLLM is about to take in.

        On any other, and where a KV connector may have failed a load, it is decided when that token is there.
        """
        if output.kv_connector_output:
            return
        for name in self._step.scores.keys() - self._decided:
            request = self.requests.get(name)
            if request and not (request.is_finished() or self._drops(request)) and _has_token(output, name):
                self._decide(request)

    def _all_pass(self, step: SchedulerOutput) -> bool:
        """Whether every request of a step has passed, with nothing to be done about its answer.

        None has until vLLM asks about a request: another plugin may have patched the way here away. Without it no verdict
        is delivered either, which the self-test's canary prompt finds.
        """
        waiting = self._to_act_on or self._crossings or self._held_logprobs
        return self._is_asked and not waiting and self._decided.issuperset(step.num_scheduled_tokens)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        self._is_asked = True
        if request.request_id not in self._decided:
            self._decide(request)
        if verdict := self._to_act_on.pop(request.request_id, None):
            self._tell(request, verdict)
            if verdict.action is Action.BLOCK:
                _end(request, STOP_BLOCKED)
                return [], True
            self._to_steer.append(request)
            self._hold_logprobs(request.request_id)
            return [], False
        if (crossing := self._crossings.pop(request.request_id, None)) and self._interrupt(request, crossing):
            return [], True
        if self._held_logprobs:
            self._give_logprobs(request.request_id)
        result: tuple[list[int], bool] = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        return result

    def _answering(self, name: str) -> Request | None:
        """Return the request, or None where what comes of it does not count: it is over, or was taken back."""
        request = self.requests.get(name)
        return None if request is None or self._drops(request) else request

    def _judge_answer(self, name: str, reading: npt.NDArray[np.float64] | Unscored) -> Verdict:
        request = self.requests[name]
        asked = _asked(request)
        rules = self._policies[self._subject(request) or 0].answers
        assert rules is not None  # noqa: S101 - or the answer would not be watched
        verdict = rules.judge(reading, tighten=bool(asked.get("tighten")), shadow=self._may_shadow(asked))
        return self._held_to(request, verdict)

    def _held_to(self, request: Request, verdict: Verdict) -> Verdict:
        """Return the verdict, or a block in place of a steer that the request's own constraints may undo.

        The policy may have such a request steered all the same.
        """
        steering = self._policies[self._subject(request) or 0].policy.steering
        if verdict.decision is not Action.STEER or steering is None or steering.constrained is Action.STEER:
            return verdict
        constraint = constraint_of(request.sampling_params)
        return verdict.blocked_for(constraint) if constraint else verdict

    def _interrupt(self, request: Request, crossing: Crossing) -> bool:
        """Do what was decided on an answer in its middle; return whether it ends here."""
        verdict = crossing.verdict
        carried = self._undelivered.setdefault(request.request_id, {PROMPT: _asked(request).get(PROMPT)})
        carried[ANSWER] = verdict.to_wire() | {"tokens": crossing.num_tokens}
        if verdict.action is Action.BLOCK:
            _end(request, STOP_ANSWER)
        elif verdict.action is Action.STEER and not self._orders.steers(request):
            # From the first position on that no step was scheduled with; what is taken back meanwhile counts as scheduled.
            begin = max(request.num_computed_tokens, crossing.position)
            keep_private(request, begin, self.hash_block_size)
            self._orders.steer(request, self._strengths[self._subject(request) or 0], begin)
        return verdict.action is Action.BLOCK

    def _hold_logprobs(self, request_id: str) -> None:
        """Keep the prompt's log-probabilities: its token is dropped, and a runner gives them once, with the prompt's end.

        Steering begins at the prompt's last position, so the pass that follows would give the same ones.
        """
        self._held_logprobs[request_id] = [given.pop(request_id, None) for given in self._step.prompt_logprobs]

    def _give_logprobs(self, request_id: str) -> None:
        for given, held in zip(self._step.prompt_logprobs, self._held_logprobs.pop(request_id, ()), strict=False):
            if held is not None:
                given[request_id] = held

    def _decide(self, request: Request) -> None:
        verdict = self._held_to(request, self._judge(request))
        if verdict.unscored in _SPOILT:
            self._stop_sharing(request, verdict.unscored)
        self._orders.decided(request)
        self._decided.add(request.request_id)
        if verdict.action in (Action.BLOCK, Action.STEER):
            # Until its token is there, which then goes no further: a verdict is reported only when it was acted on.
            self._to_act_on[request.request_id] = verdict
        else:
            self._tell(request, verdict)

    def _tell(self, request: Request, verdict: Verdict) -> None:
        self._undelivered[request.request_id] = {PROMPT: _asked(request).get(PROMPT), VERDICT: verdict.to_wire()}

    def _judge(self, request: Request) -> Verdict:
        subject = self._subject(request)
        if subject is None:
            scores: list[list[float]] | str = Unscored.ADAPTER.value
        else:
            scores = self._step.scores.get(request.request_id, Unscored.MISSING.value)
        policy = self._policies[subject or 0]
        asked, ending = _asked(request), self._endings.get(request.request_id, Ending.OPEN)
        tighten = bool(asked.get("tighten"))
        try:
            reading = Unscored(scores) if isinstance(scores, str) else scores
            verdict = policy.judge_turns(reading, ending, tighten=tighten, shadow=self._may_shadow(asked))
        except Exception:
            # The one broad handler of this process: whatever failed, the request is unscored, counted and treated as
            # the policy says, and the engine lives on.
            logger.exception("the policy failed on a request; it is treated as unscored")
            verdict = policy.judge(Unscored.POLICY_ERROR, tighten=tighten)
        return _bypassing(verdict, policy) if self._behind_middleware and PROMPT not in asked else verdict

    def _stop_sharing(self, request: Request, reason: Unscored) -> None:
        """Take blocks whose tokens have no scores out of the prefix cache: a prompt that began with them would have none.

        Those before the first such token stay. They are often a system prompt that many share.
        """
        if reason is Unscored.SENSOR_ERROR:
            # The workers forgot all that they had kept.
            blocks = set(range(self.kv_cache_config.num_blocks))
        else:
            first = self._step.gaps.get(request.request_id, 0)
            groups = self.kv_cache_config.kv_cache_groups
            owned = self.kv_cache_manager.get_block_ids(request.request_id)
            blocks = {
                block
                for group, own in zip(groups, owned, strict=True)
                for block in own[first // group.kv_cache_spec.block_size :]
            }
        self.kv_cache_manager.evict_blocks(blocks)

    def _may_shadow(self, asked: dict[str, Any]) -> bool:
        # Loosening needs the digest of a key that the policy names: not even a hole in the API server could forge it.
        return bool(asked.get("shadow")) and any(
            caller.may_shadow and caller.is_known_by(asked.get("caller")) for caller in self._policies[0].policy.callers
        )

    def _resume_steered(self, request: Request) -> None:
        """Take the request's prompt tail back, to be computed again, steered.

        With prefix caching only the prompt's last block is recomputed. Its first token is then sampled under steering.
        """
        begin = request.num_prompt_tokens - 1  # which predicts the first token
        keep_private(request, begin, self.hash_block_size)
        self._orders.steer(request, self._strengths[self._subject(request) or 0], begin)
        if request.status is RequestStatus.PREEMPTED:
            self._drop_stale_output(request)  # vLLM took it out already, to make room
            return
        self.running.remove(request)
        self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        # It resumes in the very next step, as if it had not been in the last one.
        self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _deliver(self, outputs: dict[int, Any]) -> None:
        """Put verdicts onto the first outputs of their requests, off which `verdict_reader` takes them."""
        for client in outputs.values():
            for output in client.outputs:
                if carried := self._undelivered.pop(output.request_id, None):
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), EXTRA: carried}
        # What was steered has no output yet; what was aborted meanwhile will have none.
        self._undelivered = {name: each for name, each in self._undelivered.items() if name in self.requests}

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._decided.discard(request.request_id)
        self._endings.pop(request.request_id, None)
        self._held_logprobs.pop(request.request_id, None)
        self._crossings.pop(request.request_id, None)
        self._to_act_on.pop(request.request_id, None)
        self._watches.end(request.request_id)
        self._orders.close(request)
        return super()._free_request(request, *args, **kwargs)


class GuardedAsyncScheduler(GuardedScheduler, AsyncScheduler):
    """The gate on vLLM's asynchronous scheduler."""


def guarded_scheduler(*, vllm_config: Any, **options: Any) -> GuardedScheduler:
    """Return the gate for the kind of scheduling that vLLM has settled on. Named by `--scheduler-cls`."""
    gate = GuardedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else GuardedScheduler
    return gate(vllm_config=vllm_config, **options)


def _asked(request: Request) -> dict[str, Any]:
    """Return what the API process says and asks about the request; nothing of one that did not come through it."""
    given = (request.sampling_params.extra_args or {}).get(EXTRA) if request.sampling_params else None
    # No client can give a mapping here: it is the verdict reader's, or it is none.
    return given if isinstance(given, dict) else {}


def _end(request: Request, reason: str) -> None:
    request.status = RequestStatus.FINISHED_STOPPED
    request.stop_reason = stop_reason(reason, _asked(request).get(PROMPT))
    request.resumable = False


def _has_token(output: ModelRunnerOutput, name: str) -> bool:
    place = output.req_id_to_index.get(name)
    return bool(place is not None and output.sampled_token_ids and output.sampled_token_ids[place])


_SPOILT = frozenset({Unscored.TAP_SILENT, Unscored.NOT_FINITE, Unscored.SENSOR_ERROR})
"""Reasons that say that slots of the KV cache hold no scores."""


def _bypassing(verdict: Verdict, policy: BoundPolicy) -> Verdict:
    """Return the verdict on a request that came past the verdict reader, where nothing will hide or count it.

    It is unscored, but where its scores call for more than the policy does of those; and it tells no scores.
    """
    logger.error("a request came past the guard's part of the API server; it is unscored")
    unscored = policy.judge(Unscored.BYPASSED)
    severest = verdict if verdict.action.severity > unscored.action.severity else unscored
    return replace(severest, scores={}, unscored=Unscored.BYPASSED)


def _strengths(policies: list[BoundPolicy], artifacts: list[Artifact]) -> list[list[float]]:
    """Return for the model and each adapter how strongly every artifact's vectors act when it is steered, `[S]`."""
    vectors = [(owner, vector.name) for owner, each in enumerate(artifacts) for vector in each.manifest.steering]

    def of(subject: int) -> list[float]:
        steering = policies[subject].policy.steering
        return [steering.strength if steering and (subject, steering.vector) == each else 0.0 for each in vectors]

    return [of(subject) for subject in range(len(artifacts))]
