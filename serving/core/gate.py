"""The gate: vLLM's scheduler, deciding on each prompt before its first token leaves. Named by `--scheduler-cls`.

It overrides, of `vllm/v1/core/sched/scheduler.py`: `add_request`, `_update_request_as_session`, `schedule`,
`_get_local_prefix_cache_hit` (0.28 and later have it), `update_from_output`, `_update_request_with_output` (the first
sampled token is where a request passes or does not) and `_free_request`; and calls `_preempt_request`, as `versions`
has it, and of `kv_cache_manager` `get_block_ids` and `evict_blocks`. Under asynchronous scheduling a step is
scheduled before the last one's output is here: what a blocked or steered request had in flight by then is dropped by
vLLM itself.

A request with no verdict has no tokens: the gate asks for a verdict at the first sampled token and finds either scores
or a reason why there are none. Nothing that fails upstream can skip it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from guard.verdict import Action, Unscored, Verdict
from serving.config import GuardConfig
from serving.core.answer_watches import AnswerWatches
from serving.core.case import Case, Cases
from serving.core.orders import OrderBook
from serving.core.policies import Policies, asked_of
from serving.core.private_blocks import keep_private
from serving.core.prompt_turns import prompt_turns
from serving.core.versions import DroppingScheduler, prompt_logprobs
from serving.wire import (
    ANSWER,
    EXTRA,
    GAPS,
    NO_ORDERS,
    ORDERS,
    PROMPT,
    PROMPT_TOKENS,
    SCORES,
    STOP_ANSWER,
    STOP_BLOCKED,
    VERDICT,
    Steer,
    stop_reason,
)

TakeIn = Callable[..., tuple[list[int], bool]]
"""Takes a request and its new tokens; returns those that leave, and whether the request is over."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What the gate needs to know about the output being processed, and what it has to say with it."""

    take_in: TakeIn
    """What takes requests' new tokens in."""
    scores: dict[str, list[list[float]] | str] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    """Where the first token without a score is, in prompts that are not scored for want of it."""
    prompt_logprobs: tuple[dict[str, Any], ...] = ()
    """Log-probabilities of prompts: of their own tokens, and of tokens that were asked for."""
    to_steer: list[Case] = field(default_factory=list)
    """Prompts that are to be computed again, steered."""
    to_tell: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By request: what its output of this step tells the API server."""


class GuardedScheduler(DroppingScheduler):
    """A scheduler in which a request's first token waits for its verdict."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = GuardConfig.from_vllm(self.vllm_config.additional_config)
        artifacts = config.load_artifacts()
        self._policies = Policies(config, artifacts)
        self._templates = [artifact.manifest.template for artifact in artifacts]
        self._watches = AnswerWatches(self._policies, artifacts, self.vllm_config)
        self._cases = Cases()
        probes = [probe for artifact in artifacts for probe in artifact.manifest.probes]
        self._orders = OrderBook(self, self._cases, [probe.readout for probe in probes])
        self._step = _Step(self._take_in)

    def add_request(self, request: Request) -> None:
        """Take a request in, whose prompt is to be scored."""
        if request.request_id not in self.requests:
            self._open_case(request)
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: Any) -> None:
        # A streamed input goes on: what was decided was decided on less than is now asked.
        super()._update_request_as_session(session, update)
        self._open_case(session, self._close_case(session))

    def _open_case(self, request: Request, before: Case | None = None) -> Case:
        case = self._cases.open(self._policies.open(request, before))
        if case.subject is not None:
            case.turns, case.ending = prompt_turns(request, self._templates[case.subject])
            self._watches.begin(case)
        return case

    def _close_case(self, request: Request) -> Case | None:
        if case := self._cases.close(request.request_id):
            self._watches.end(case)
        return case

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule a step, with the guard's orders to the workers."""
        step = super().schedule(*args, **kwargs)
        self._orders.attach_to(step)
        return step

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        return self._orders.prefix_cache_hit(request, super()._get_local_prefix_cache_hit)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Process a step's output, deciding on every prompt that it finished."""
        output = model_runner_output
        self._read_answers(scheduler_output, output)
        passed = self._cases.are_quiet(scheduler_output.num_scheduled_tokens)
        take_in = super()._update_request_with_output if passed else self._take_in
        self._step = _Step(take_in, getattr(output, SCORES, {}), getattr(output, GAPS, {}), prompt_logprobs(output))
        self._decide_ahead(output)
        outputs = super().update_from_output(scheduler_output, output)
        for case in self._step.to_steer:
            self._resume_steered(case)
        if self._step.to_tell:
            self._deliver(outputs)
        return outputs

    def _read_answers(self, step: SchedulerOutput, output: ModelRunnerOutput) -> None:
        """Read what the step took in of watched answers. A crossing is acted on when its request has its next token."""
        if watched := getattr(step, ORDERS, NO_ORDERS).watched:
            cases = [case for name in watched if (case := self._cases.get(name)) and not self._drops(case.request)]
            self._watches.take_in(step, output, cases)

    def _decide_ahead(self, output: ModelRunnerOutput) -> None:
        """Decide on the prompts that a step finished and whose first token vLLM is about to take in.

        On any other, and where a KV connector may have failed a load, it is decided when that token is there.
        """
        if output.kv_connector_output:
            return
        for name in self._step.scores:
            case = self._cases.get(name)
            if case is None or case.verdict is not None or not _has_token(output, name):
                continue
            if not (case.request.is_finished() or self._drops(case.request)):
                self._decide(case)

    @property
    def _update_request_with_output(self) -> TakeIn:
        """What vLLM takes a request's new tokens in by: its own method in a step in which nothing is left to do.

        A call of the gate's for each request would be most of what the guard costs in such a step, and most steps are
        such.
        """
        return self._step.take_in

    def _take_in(self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any) -> tuple[list[int], bool]:
        if not self._cases.is_quiet(request.request_id):
            case = self._cases.get(request.request_id) or self._open_case(request)
            if self._stops(case):
                # vLLM ends what is over. What is steered has its prompt's end computed again.
                return [], case.request.is_finished()
        result: tuple[list[int], bool] = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        return result

    def _stops(self, case: Case) -> bool:
        """Do what is left to do about a case with a new token; return whether that token goes no further."""
        verdict = case.verdict or self._decide(case)
        stops = (not case.is_acted_on and self._act(case, verdict)) or self._interrupt(case)
        if case.untold and (not stops or case.request.is_finished()):
            self._step.to_tell[case.name], case.untold = case.untold, None
        if not stops:
            self._give_logprobs(case)
            self._cases.settle(case)
        return stops

    def _decide(self, case: Case) -> Verdict:
        missing = Unscored.ADAPTER if case.subject is None else Unscored.MISSING
        case.verdict = self._policies.on_prompt(case, self._step.scores.get(case.name, missing.value))
        if case.verdict.unscored in _SPOILT:
            self._stop_sharing(case, case.verdict.unscored)
        return case.verdict

    def _act(self, case: Case, verdict: Verdict) -> bool:
        """Do what was decided on a prompt; return whether its first token goes no further."""
        case.is_acted_on = True
        self._tell(case, VERDICT, verdict.to_wire())
        if verdict.action is Action.BLOCK:
            _end(case.request, STOP_BLOCKED)
        elif verdict.action is Action.STEER:
            self._hold_logprobs(case)
            self._step.to_steer.append(case)
        return verdict.action in (Action.BLOCK, Action.STEER)

    def _interrupt(self, case: Case) -> bool:
        """Do what was decided on an answer in its middle, if anything was; return whether it ends here."""
        if case.crossing is None:
            return False
        (verdict, num_tokens, position), case.crossing = case.crossing, None
        self._tell(case, ANSWER, verdict.to_wire() | {"tokens": num_tokens})
        if verdict.action is Action.BLOCK:
            _end(case.request, STOP_ANSWER)
        elif verdict.action is Action.STEER and not case.steering:
            # From the first position on that no step was scheduled with; what is taken back meanwhile counts as
            # scheduled.
            self._steer(case, max(case.request.num_computed_tokens, position))
        return verdict.action is Action.BLOCK

    def _tell(self, case: Case, what: str, told: dict[str, Any]) -> None:
        about = {PROMPT: asked_of(case.request).get(PROMPT), PROMPT_TOKENS: case.request.num_prompt_tokens}
        case.untold = {**about, **(case.untold or {}), what: told}

    def _steer(self, case: Case, begin: int) -> None:
        keep_private(case.request, begin, self.hash_block_size)
        case.steering = Steer(case.strengths, begin)

    def _resume_steered(self, case: Case) -> None:
        """Take the request's prompt tail back, to be computed again, steered.

        With prefix caching only the prompt's last block is recomputed. Its first token is then sampled under steering.
        """
        request = case.request
        self._steer(case, request.num_prompt_tokens - 1)  # which predicts the first token
        if request.status is RequestStatus.PREEMPTED:
            self._drop_stale_output(request)  # vLLM took it out already, to make room
            return
        self.running.remove(request)
        self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        # It resumes in the very next step, as if it had not been in the last one.
        self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _hold_logprobs(self, case: Case) -> None:
        """Keep the prompt's log-probabilities: its token is dropped, and a runner gives them once, with the prompt's
        end.

        Steering begins at the prompt's last position, so the pass that follows would give the same ones.
        """
        case.held_logprobs = tuple(given.pop(case.name, None) for given in self._step.prompt_logprobs)

    def _give_logprobs(self, case: Case) -> None:
        for given, held in zip(self._step.prompt_logprobs, case.held_logprobs, strict=False):
            if held is not None:
                given[case.name] = held
        case.held_logprobs = ()

    def _deliver(self, outputs: dict[int, Any]) -> None:
        """Put what is to be told onto the outputs of its requests, off which `verdict_reader` takes it."""
        for client in outputs.values():
            for output in client.outputs:
                if told := self._step.to_tell.get(output.request_id):
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), EXTRA: told}

    def _stop_sharing(self, case: Case, reason: Unscored) -> None:
        """Take blocks whose tokens have no scores out of the prefix cache: a prompt that began with them would have
        none.

        Those before the first such token stay. They are often a system prompt that many share.
        """
        if reason is Unscored.SENSOR_ERROR:
            # The workers forgot all that they had kept.
            blocks = set(range(self.kv_cache_config.num_blocks))
        else:
            first = self._step.gaps.get(case.name, 0)
            groups = self.kv_cache_config.kv_cache_groups
            owned = self.kv_cache_manager.get_block_ids(case.name)
            blocks = {
                block
                for group, own in zip(groups, owned, strict=True)
                for block in own[first // group.kv_cache_spec.block_size :]
            }
        self.kv_cache_manager.evict_blocks(blocks)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._close_case(request)
        return super()._free_request(request, *args, **kwargs)


class GuardedAsyncScheduler(GuardedScheduler, AsyncScheduler):
    """The gate on vLLM's asynchronous scheduler."""


def guarded_scheduler(*, vllm_config: Any, **options: Any) -> GuardedScheduler:
    """Return the gate for the kind of scheduling that vLLM has settled on. Named by `--scheduler-cls`."""
    gate = GuardedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else GuardedScheduler
    return gate(vllm_config=vllm_config, **options)


def _end(request: Request, reason: str) -> None:
    request.status = RequestStatus.FINISHED_STOPPED
    request.stop_reason = stop_reason(reason, asked_of(request).get(PROMPT))
    request.resumable = False


def _has_token(output: ModelRunnerOutput, name: str) -> bool:
    place = output.req_id_to_index.get(name)
    return bool(place is not None and output.sampled_token_ids and output.sampled_token_ids[place])


_SPOILT = frozenset({Unscored.TAP_SILENT, Unscored.NOT_FINITE, Unscored.SENSOR_ERROR})
"""Reasons that say that slots of the KV cache hold no scores."""
