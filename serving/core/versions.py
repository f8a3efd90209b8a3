"""Where the schedulers of the supported versions of vLLM differ: what later ones have, added to earlier ones.

It touches, of `vllm/v1/core/sched/scheduler.py`: `_preempt_request` and `update_from_output`, overridden in versions
before 0.27, and of `Request` there `num_in_flight_tokens`, `num_output_placeholders`, `async_tokens_to_discard`; of
`ModelRunnerOutput`: `prompt_logprobs_dict`, `prompt_token_id_logprobs_dict` (from 0.31), `sampled_token_ids`.
"""

import inspect
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request


class _Dropping(Scheduler):
    """vLLM's scheduler, from 0.27: a request that is taken back can leave behind what it has under way."""

    def _drop_stale_output(self, request: Request) -> None:
        """Drop what a request that was taken back already still has under way."""
        request.drop_stale_output = True

    def _drops(self, request: Request) -> bool:
        """Return whether what comes of the request is dropped: it was under way when the request was taken back."""
        return bool(request.num_stale_output_tokens and request.drop_stale_output)


class _DroppingBefore027(Scheduler):
    """The same for 0.26, which knows it of a reset of the prefix cache only, and there counts outputs, not their
    tokens.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stale_tokens: dict[str, int] = {}

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        super()._preempt_request(request, timestamp)
        if drop_stale_output:
            self._drop_stale_output(request)

    def _drop_stale_output(self, request: Request) -> None:
        if request.num_in_flight_tokens:
            self._stale_tokens[request.request_id] = request.num_in_flight_tokens
        # All that is under way is dropped here, before the scheduler sees it: it waits for none of it and discards
        # none.
        request.num_output_placeholders = request.async_tokens_to_discard = 0

    def _drops(self, request: Request) -> bool:
        return request.request_id in self._stale_tokens

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        if self._stale_tokens:
            for request_id in self._stale_tokens.keys() & scheduler_output.num_scheduled_tokens.keys():
                self._drop(request_id, scheduler_output.num_scheduled_tokens[request_id], model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _drop(self, request_id: str, num_tokens: int, output: ModelRunnerOutput) -> None:
        # Steps come back in the order in which they were scheduled: these are the oldest.
        self._stale_tokens[request_id] -= num_tokens
        if self._stale_tokens[request_id] <= 0:
            del self._stale_tokens[request_id]
        if output.sampled_token_ids:
            output.sampled_token_ids[output.req_id_to_index[request_id]] = []
        output.prompt_logprobs_dict.pop(request_id, None)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._stale_tokens.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)


_CAN_DROP = "drop_stale_output" in inspect.signature(Scheduler._preempt_request).parameters
DroppingScheduler: Any = _Dropping if _CAN_DROP else _DroppingBefore027
"""vLLM's scheduler, whose `_preempt_request` has `drop_stale_output`, and which has `_drop_stale_output`."""


def prompt_logprobs(output: ModelRunnerOutput) -> tuple[dict[str, Any], ...]:
    """Return the log-probabilities of prompts in a step's output, by request: of their tokens, and of those asked
    for.
    """
    return output.prompt_logprobs_dict, getattr(output, "prompt_token_id_logprobs_dict", {})
