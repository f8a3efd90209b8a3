"""The scorer: the guarded worker of a calibration, which keeps the scores of prompts' last turns and tells no gate.

Sensor, slots and readouts are those that serve. The scheduler gives the gate's orders and decides nothing. It
overrides, of `vllm/v1/core/sched/scheduler.py`: `add_request`, `schedule`, `_free_request`; of
`vllm/v1/worker/gpu_worker.py`: `execute_model`; and reads, of the V1 model runner, `requests`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from probes.errors import ModelError
from serving.config import GuardConfig
from serving.core.case import Case, Cases
from serving.core.orders import OrderBook
from serving.core.prompt_turns import prompt_turns
from serving.wire import EXTRA
from serving.worker.worker import GuardedWorker


class ScoringScheduler(Scheduler):
    """A scheduler that asks for every prompt's scores."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cases = Cases()
        self._orders = OrderBook(self, self._cases)
        artifact = GuardConfig.from_vllm(self.vllm_config.additional_config).load_artifact()
        self._template = artifact.manifest.template

    def add_request(self, request: Request) -> None:
        """Take a request in, whose prompt is to be scored."""
        turns, ending = prompt_turns(request, self._template)
        self._cases.open(Case(request, 0, turns, ending))
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule a step, with the orders to the workers."""
        step = super().schedule(*args, **kwargs)
        self._orders.attach_to(step)
        return step

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._cases.close(request.request_id)
        return super()._free_request(request, *args, **kwargs)


class ScoringWorker(GuardedWorker):
    """A worker that scores the prompts that pass through it, by the artifact that it was configured with."""

    foreguard_scored: torch.Tensor

    def foreguard_begin(self, num_prompts: int, _where: Sequence[int | str], _content: Sequence[Sequence[int]]) -> None:
        """Make room for `num_prompts` prompts, which say in their `extra_args` which row they are."""
        self.foreguard_scored = torch.full((num_prompts, self.foreguard.num_probes), torch.nan)

    def foreguard_write(self, path: str) -> None:
        """Write `scores` `[N, K]`, float32, to the safetensors file `path`, by the first worker alone: all hold the
        same.
        """
        if self.rank == 0:
            save_file({"scores": self.foreguard_scored}, path)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run the model, and keep the scores of the prompts that it finished."""
        output = super().execute_model(scheduler_output)
        readings, self.foreguard_read = self.foreguard_read, ()
        for request, scores in (each for reading in readings for each in reading.resolve().items()):
            if isinstance(scores, str):
                raise ModelError(
                    f"a prompt could not be scored: {scores}",
                    field="engine",
                    remedy="remove vLLM's compile cache, or calibrate with --engine-args=--enforce-eager",
                )
            row = self.model_runner.requests[request].sampling_params.extra_args[EXTRA]["row"]
            self.foreguard_scored[row] = torch.tensor(scores[-1])
        return output
