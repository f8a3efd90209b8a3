"""Adapter to vLLM's V2 model runner: how its batch is laid out.

It touches, of `vllm/v1/worker/gpu/model_runner.py`: `prepare_attn` (wrapped: called for every batch that is not a dummy,
after it is laid out and before any CUDA graph is replayed), `block_tables.slot_mappings`, and of `InputBatch`: `req_ids`,
`query_start_loc_np`, `num_computed_tokens_np`.
"""

from typing import Any

import torch

from serving.engine.guarded_pass import GuardedPass


class LayoutV2:
    """The layout of a V2 batch: requests in the order of `req_ids`, tokens one request after another."""

    def __init__(self, runner: Any, batch: Any) -> None:
        self._block_tables = runner.block_tables
        self._batch = batch

    def rows(self, request_id: str) -> tuple[int, int, int]:
        """Return a request's first row, the row after its last, and the position of its first row's token."""
        batch = self._batch
        index = batch.req_ids.index(request_id)
        start, stop = batch.query_start_loc_np[index : index + 2].tolist()
        return start, stop, int(batch.num_computed_tokens_np[index])

    def slots(self, group: int, num_tokens: int) -> torch.Tensor:
        """Return the KV-cache slots `[num_tokens]` of the batch's rows."""
        slots: torch.Tensor = self._block_tables.slot_mappings[group, :num_tokens]
        return slots


def attach_v2(runner: Any, guard: GuardedPass) -> None:
    """Tell `guard` of every batch that a V2 runner lays out."""
    prepare = runner.prepare_attn

    def prepare_and_tell(input_batch: Any) -> Any:
        prepared = prepare(input_batch)
        guard.lay_out(LayoutV2(runner, input_batch))
        return prepared

    runner.prepare_attn = prepare_and_tell
