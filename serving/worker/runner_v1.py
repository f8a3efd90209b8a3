"""Adapter to vLLM's V1 model runner: how its batch is laid out.

It touches, of `vllm/v1/worker/gpu_model_runner.py`: `_prepare_inputs` (wrapped: after it the batch is laid out) and
`input_batch` (`req_id_to_index`, `num_computed_tokens_cpu`, `block_table`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.core.sched.output import SchedulerOutput

from serving.worker.guarded_pass import GuardedPass, Places


class LayoutV1:
    """The layout of a V1 batch: requests by their row in the persistent batch, tokens one request after another."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._scheduled: npt.NDArray[np.int32] = np.empty(0, np.int32)

    def lay_out(self, scheduled: npt.NDArray[np.int32]) -> None:
        """Take in how many tokens of each request are scheduled, `[R]`."""
        self._scheduled = scheduled

    def places(self, request_ids: Sequence[str]) -> Places:
        """Return where the requests stand in the batch."""
        batch = self._runner.input_batch
        index = [batch.req_id_to_index[name] for name in request_ids]
        stops: npt.NDArray[np.int64] = self._scheduled.cumsum(dtype=np.int64)[index]
        positions = batch.num_computed_tokens_cpu[index].astype(np.int64)
        return Places(starts=stops - self._scheduled[index], stops=stops, positions=positions)

    def slots(self, group: int) -> torch.Tensor:
        """Return the KV-cache slots of the batch's rows, and others behind them."""
        slots: torch.Tensor = self._runner.input_batch.block_table[group].slot_mapping.gpu
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
