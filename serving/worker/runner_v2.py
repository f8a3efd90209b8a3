"""Adapter to vLLM's V2 model runner: how its batch is laid out.

It touches, of `vllm/v1/worker/gpu/model_runner.py`: `prepare_attn` (wrapped: called for every batch that is not a
dummy, after it is laid out and before any CUDA graph is replayed), `block_tables.slot_mappings`, and of `InputBatch`:
`req_ids`, `query_start_loc_np`, `num_computed_tokens_np`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from serving.worker.guarded_pass import GuardedPass, Places


class LayoutV2:
    """The layout of a V2 batch: requests in the order of `req_ids`, tokens one request after another."""

    def __init__(self, runner: Any, batch: Any) -> None:
        self._block_tables = runner.block_tables
        self._batch = batch

    def places(self, request_ids: Sequence[str]) -> Places:
        """Return where the requests stand in the batch."""
        batch = self._batch
        numbers = {name: number for number, name in enumerate(batch.req_ids)}
        index = np.array([numbers[name] for name in request_ids], dtype=np.int64)
        starts = batch.query_start_loc_np.astype(np.int64)
        return Places(starts[index], starts[index + 1], batch.num_computed_tokens_np[index].astype(np.int64))

    def slots(self, group: int) -> torch.Tensor:
        """Return the KV-cache slots of the batch's rows, and others behind them."""
        slots: torch.Tensor = self._block_tables.slot_mappings[group]
        return slots


def attach_v2(runner: Any, guard: GuardedPass) -> None:
    """Tell `guard` of every batch that a V2 runner lays out."""
    prepare = runner.prepare_attn

    def prepare_and_tell(input_batch: Any) -> Any:
        prepared = prepare(input_batch)
        guard.lay_out(LayoutV2(runner, input_batch))
        return prepared

    runner.prepare_attn = prepare_and_tell
