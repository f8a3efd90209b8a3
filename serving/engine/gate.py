"""The gate: vLLM's scheduler, deciding on each prompt before its first token leaves. Named by `--scheduler-cls`.

It overrides, of `vllm/v1/core/sched/scheduler.py`: `add_request`, `_update_request_as_session`, `schedule`,
`update_from_output`, `_update_request_with_output` (the first sampled token is where a request passes or does not) and
`_free_request`; and calls `_preempt_request`. Under asynchronous scheduling a step is scheduled before the last one's output
is here: what a blocked or steered request had in flight by then is dropped by vLLM itself.

A request with no verdict has no tokens: the gate asks for a verdict at the first sampled token and finds either scores or
a reason why there are none. Nothing that fails upstream can skip it.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from guard.decide import BoundPolicy
from guard.verdict import Action, Unscored, Verdict
from probes.artifact import Artifact
from serving.config import GuardConfig
from serving.engine.orders import OrderBook
from serving.engine.wire import EXTRA, SCORES, STOP_BLOCKED

logger = init_logger("vllm.foreguard.gate")


@dataclass(frozen=True, slots=True)
class _Step:
    """What the gate needs to know about the output being processed."""

    scores: dict[str, list[float] | str]
    prompt_logprobs: tuple[dict[str, Any], ...]
    """Log-probabilities of prompts: of their own tokens, and of tokens that were asked for."""


class GuardedScheduler(Scheduler):
    """A scheduler in which a request's first token waits for its verdict."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = GuardConfig.from_vllm(self.vllm_config.additional_config)
        artifacts = config.load_artifacts()
        self._policies: list[BoundPolicy] = [config.bind_policy(artifact) for artifact in artifacts]
        self._strengths = _strengths(self._policies, artifacts)
        self._adapters = {(each.name, each.path): number for number, each in enumerate(config.adapters, 1)}
        probes = [probe for artifact in artifacts for probe in artifact.manifest.probes]
        self._orders = OrderBook(self, [probe.readout for probe in probes])
        self._verdicts: dict[str, dict[str, Any]] = {}
        self._to_steer: list[Request] = []
        self._held_logprobs: dict[str, list[Any]] = {}
        self._step = _Step({}, ())

    def add_request(self, request: Request) -> None:
        """Take a request in, whose prompt is to be scored."""
        if request.request_id not in self.requests:
            self._ask_for(request)
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: Any) -> None:
        # A streamed input goes on: what was decided was decided on less than is now asked.
        super()._update_request_as_session(session, update)
        self._verdicts.pop(session.request_id, None)
        self._ask_for(session)

    def _ask_for(self, request: Request) -> None:
        if (subject := self._subject(request)) is not None:
            self._orders.open(request, subject)

    def _subject(self, request: Request) -> int | None:
        """Return whose probes score the request: 0 is the model itself, None an adapter that has no artifact."""
        adapter = request.lora_request
        # Another folder under a known name is another adapter: vLLM may be told to load one while it runs.
        return 0 if adapter is None else self._adapters.get((adapter.lora_name, Path(adapter.lora_path)))

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule a step, with the guard's orders to the workers."""
        step = super().schedule(*args, **kwargs)
        self._orders.give(step)
        return step

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """Process a step's output, deciding on every prompt that it finished."""
        output = model_runner_output
        prompt_logprobs = output.prompt_logprobs_dict, output.prompt_token_id_logprobs_dict
        self._step = _Step(getattr(output, SCORES, {}), prompt_logprobs)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._to_steer:
            self._resume_steered(request)
        self._to_steer.clear()
        self._deliver(outputs)
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        if request.request_id not in self._verdicts:
            verdict = self._decide(request)
            if verdict.action is Action.BLOCK:
                request.status = RequestStatus.FINISHED_STOPPED
                request.stop_reason = STOP_BLOCKED
                request.resumable = False
                return [], True
            if verdict.action is Action.STEER:
                self._to_steer.append(request)
                self._hold_logprobs(request.request_id)
                return [], False
        if self._held_logprobs:
            self._give_logprobs(request.request_id)
        result: tuple[list[int], bool] = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        return result

    def _hold_logprobs(self, request_id: str) -> None:
        """Keep the prompt's log-probabilities: its token is dropped, and a runner gives them once, with the prompt's end.

        Steering begins at the prompt's last position, so the pass that follows would give the same ones.
        """
        self._held_logprobs[request_id] = [given.pop(request_id, None) for given in self._step.prompt_logprobs]

    def _give_logprobs(self, request_id: str) -> None:
        for given, held in zip(self._step.prompt_logprobs, self._held_logprobs.pop(request_id, ()), strict=False):
            if held is not None:
                given[request_id] = held

    def _decide(self, request: Request) -> Verdict:
        verdict = self._judge(request)
        self._orders.decided(request)
        self._verdicts[request.request_id] = verdict.to_wire()
        return verdict

    def _judge(self, request: Request) -> Verdict:
        subject = self._subject(request)
        if subject is None:
            scores: list[float] | str = Unscored.ADAPTER.value
        else:
            scores = self._step.scores.get(request.request_id, Unscored.MISSING.value)
        policy = self._policies[subject or 0]
        asked = (request.sampling_params.extra_args or {}).get(EXTRA, {}) if request.sampling_params else {}
        reading = Unscored(scores) if isinstance(scores, str) else scores
        try:
            return policy.judge(reading, tighten=bool(asked.get("tighten")), shadow=self._may_shadow(asked))
        except Exception:
            # The one broad handler of this process: whatever failed, the request is unscored, counted and treated as
            # the policy says, and the engine lives on.
            logger.exception("the policy failed on a request; it is treated as unscored")
            return policy.judge(Unscored.POLICY_ERROR)

    def _may_shadow(self, asked: dict[str, Any]) -> bool:
        # Loosening needs the digest of a key that the policy names: not even a hole in the API server could forge it.
        return bool(asked.get("shadow")) and any(
            caller.may_shadow and caller.key_sha256 == asked.get("caller")
            for caller in self._policies[0].policy.callers
        )

    def _resume_steered(self, request: Request) -> None:
        """Take the request's prompt tail back, to be computed again, steered.

        With prefix caching only the prompt's last block is recomputed. Its first token is then sampled under steering.
        """
        _keep_steering_out_of_the_prefix_cache(request, self.hash_block_size)
        self._orders.steer(request, self._strengths[self._subject(request) or 0])
        if request.status is RequestStatus.PREEMPTED:
            request.drop_stale_output = True  # vLLM took it out already, to make room
            return
        self.running.remove(request)
        self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        # It resumes in the very next step, as if it had not been in the last one.
        self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _deliver(self, outputs: dict[int, Any]) -> None:
        """Put verdicts onto the outputs of their requests: onto each of them, for any may be the only one that arrives.

        vLLM merges outputs that nobody has taken yet, and drops those of an answer that is not streamed; it keeps the
        parameters of the last one. And which one is the last is known here only if no stop string ends it over there.
        """
        for client in outputs.values():
            for output in client.outputs:
                if verdict := self._verdicts.get(output.request_id):
                    output.kv_transfer_params = _with(output.kv_transfer_params, verdict)

    def _free_request(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        kv_params, ec_params = super()._free_request(request, *args, **kwargs)
        verdict = self._verdicts.pop(request.request_id, None)
        self._held_logprobs.pop(request.request_id, None)
        self._orders.close(request)
        # The request's last output is made after this, and finds no verdict any more.
        return (_with(kv_params, verdict) if verdict else kv_params), ec_params


class GuardedAsyncScheduler(GuardedScheduler, AsyncScheduler):
    """The gate on vLLM's asynchronous scheduler."""


def guarded_scheduler(*, vllm_config: Any, **options: Any) -> GuardedScheduler:
    """Return the gate for the kind of scheduling that vLLM has settled on. Named by `--scheduler-cls`."""
    gate = GuardedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else GuardedScheduler
    return gate(vllm_config=vllm_config, **options)


def _with(kv_params: dict[str, Any] | None, verdict: dict[str, Any]) -> dict[str, Any]:
    return {**(kv_params or {}), EXTRA: verdict}


def _strengths(policies: list[BoundPolicy], artifacts: list[Artifact]) -> list[list[float]]:
    """Return for the model and each adapter how strongly every artifact's vectors act when it is steered, `[S]`."""
    vectors = [(owner, vector.name) for owner, each in enumerate(artifacts) for vector in each.manifest.steering]

    def of(subject: int) -> list[float]:
        steering = policies[subject].policy.steering
        return [steering.strength if steering and (subject, steering.vector) == each else 0.0 for each in vectors]

    return [of(subject) for subject in range(len(artifacts))]


def _keep_steering_out_of_the_prefix_cache(request: Request, block_size: int) -> None:
    """Give every block from the prompt's last position on a name that no other request can ask for.

    Blocks are shared by the hash of their tokens; keys and values computed under steering must not be. Each hash chains
    to the one before, so salting them makes all that follow unique as well.
    """
    hasher = request._block_hasher
    if hasher is None:
        return
    del request.block_hashes[(request.num_prompt_tokens - 1) // block_size :]
    request._block_hasher = _salted(hasher, secrets.token_bytes(16))
    request.update_block_hashes()


def _salted(hasher: Callable[[Request], list[bytes]], salt: bytes) -> Callable[[Request], list[bytes]]:
    def salted(request: Request) -> list[bytes]:
        return [hashlib.sha256(salt + digest).digest() for digest in hasher(request)]

    return salted
