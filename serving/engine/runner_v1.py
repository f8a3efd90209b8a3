"""Adapter to vLLM's V1 model runner: how its batch is laid out.

It touches, of `vllm/v1/worker/gpu_model_runner.py`: `_prepare_inputs` (wrapped: after it the batch is laid out) and
`input_batch` (`req_id_to_index`, `num_computed_tokens_cpu`, `block_table`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.core.sched.output import SchedulerOutput

from serving.engine.guarded_pass import GuardedPass


class LayoutV1:
    """The layout of a V1 batch: requests by their row in the persistent batch, tokens one request after another."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._scheduled: npt.NDArray[np.int32] = np.empty(0, np.int32)

    def lay_out(self, scheduled: npt.NDArray[np.int32]) -> None:
        """Take in how many tokens of each request are scheduled, `[R]`."""
        self._scheduled = scheduled

    def rows(self, request_id: str) -> tuple[int, int, int]:
        """Return a request's first row, the row after its last, and the position of its first row's token."""
        batch = self._runner.input_batch
        index = batch.req_id_to_index[request_id]
        start = int(self._scheduled[:index].sum())
        return start, start + int(self._scheduled[index]), int(batch.num_computed_tokens_cpu[index])

    def slots(self, group: int, num_tokens: int) -> torch.Tensor:
        """Return the KV-cache slots `[num_tokens]` of the batch's rows."""
        slots: torch.Tensor = self._runner.input_batch.block_table[group].slot_mapping.gpu[:num_tokens]
        return slots


def attach_v1(runner: Any, guard: GuardedPass) -> None:
    """Tell `guard` of every batch that a V1 runner lays out."""
    prepare, layout = runner._prepare_inputs, LayoutV1(runner)

    def prepare_and_tell(step: SchedulerOutput, scheduled: npt.NDArray[np.int32]) -> Any:
        prepared = prepare(step, scheduled)
        layout.lay_out(scheduled)
        guard.lay_out(layout)
        return prepared

    runner._prepare_inputs = prepare_and_tell
