"""Adapter to vLLM's V1 model runner: which rows of the batch belong to whom.

It touches, of `vllm/v1/worker/gpu_model_runner.py`: `_prepare_inputs` (wrapped, to set steering once the batch is laid
out) and `input_batch` (`req_ids`, `req_id_to_index`, `num_computed_tokens_cpu`, `num_prompt_tokens`, `block_table`).

Token scores are kept by KV-cache slot, as the parts that the taps write. A cached prefix produces no hidden states, but
its slots still hold the scores of the tokens whose keys and values they hold, for exactly as long: every readout is exact
on a prefix-cache hit.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

from guard.verdict import Unscored
from probes.errors import ModelError
from probes.scoring import ProbeBank
from probes.steering import SteeringBank
from serving.engine.sensor import Sensor
from serving.engine.wire import STEERING

RequestScores = dict[str, list[float] | str]


class RunnerV1:
    """Carries steering to the sensor before a forward pass, and scores from it after."""

    def __init__(self, runner: Any, sensor: Sensor, probes: ProbeBank, steering: SteeringBank) -> None:
        self._runner = runner
        self._sensor = sensor
        self._probes = probes
        self._steering = steering
        self._steered = False
        self._group = 0
        self._slots = torch.empty(0)
        runner._prepare_inputs = self._steering_after(runner._prepare_inputs)

    @property
    def num_probes(self) -> int:
        """K: how many scores a request has."""
        return len(self._probes.names)

    def allocate(self, kv_cache: KVCacheConfig) -> None:
        """Make room for the scores of every KV-cache slot; a slot never written reads as NaN."""
        groups = [
            g for g, group in enumerate(kv_cache.kv_cache_groups) if isinstance(group.kv_cache_spec, FullAttentionSpec)
        ]
        if not groups:
            raise ModelError(
                "no layer of the model keeps the whole context in its KV cache, so scores cannot be kept beside it",
                field="model",
                remedy="serve a model with at least one full-attention layer",
            )
        self._group = groups[0]
        block_size = self._runner.input_batch.block_table[self._group].block_size
        spec_block = kv_cache.kv_cache_groups[self._group].kv_cache_spec.block_size
        num_slots = kv_cache.num_blocks * max(block_size, spec_block)
        parts = self._sensor.parts
        self._slots = torch.full((num_slots, parts.shape[1]), torch.nan, device=parts.device)

    def begin(self, step: SchedulerOutput) -> None:
        """Forget the last forward pass: a tap that stays silent in the next one leaves NaN, which is never a score."""
        self._sensor.fired.zero_()
        self._sensor.parts[: step.total_num_scheduled_tokens].fill_(torch.nan)

    def collect(self, step: SchedulerOutput) -> RequestScores:
        """Return the scores of the prompts that the forward pass just run has finished."""
        num_tokens = step.total_num_scheduled_tokens
        if not num_tokens:
            return {}
        batch = self._runner.input_batch
        table = batch.block_table[self._group]
        self._add_up_ranks(num_tokens)
        self._slots.index_copy_(0, table.slot_mapping.gpu[:num_tokens], self._sensor.parts[:num_tokens])
        finished = self._finished(step)
        if not len(finished):
            return {}
        if not bool(self._sensor.fired.all()):
            return {batch.req_ids[row]: Unscored.TAP_SILENT.value for row in finished}
        return self._request_scores(finished, table)

    def _add_up_ranks(self, num_tokens: int) -> None:
        """Make whole what every rank read of its own slice of the neurons; a silent tap's NaN reaches all ranks."""
        split, parts = self._sensor.split, self._sensor.parts[:num_tokens]
        if len(split):
            parts.index_copy_(1, split, tensor_model_parallel_all_reduce(parts.index_select(1, split)))

    def _finished(self, step: SchedulerOutput) -> npt.NDArray[np.intp]:
        batch = self._runner.input_batch
        num_reqs = batch.num_reqs
        before = batch.num_computed_tokens_cpu[:num_reqs]
        prompt = batch.num_prompt_tokens[:num_reqs]
        prefilling = np.flatnonzero(before < prompt)
        if not len(prefilling):
            return prefilling
        scheduled = np.array([step.num_scheduled_tokens[batch.req_ids[row]] for row in prefilling], dtype=np.int64)
        finished: npt.NDArray[np.intp] = prefilling[before[prefilling] + scheduled >= prompt[prefilling]]
        return finished

    def _request_scores(self, rows: npt.NDArray[np.intp], table: Any) -> RequestScores:
        batch = self._runner.input_batch
        lengths = [int(batch.num_prompt_tokens[row]) for row in rows]
        positions = [self._probes.positions(length) for length in lengths]
        slots = [
            table.block_table.np[row, place // table.block_size] * table.block_size + place % table.block_size
            for row, place in zip(rows, positions, strict=True)
        ]
        index = torch.from_numpy(np.concatenate(slots)).to(self._slots.device)
        scores = self._probes.add_up(self._slots[index].cpu().numpy())
        pieces = np.split(scores, np.cumsum([len(place) for place in positions])[:-1])
        return {
            batch.req_ids[row]: self._probes.request_scores(piece, place, length).tolist()
            for row, piece, place, length in zip(rows, pieces, positions, lengths, strict=True)
        }

    def _steering_after(self, prepare_inputs: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_and_steer(step: SchedulerOutput, num_scheduled_tokens: npt.NDArray[np.int32]) -> Any:
            prepared = prepare_inputs(step, num_scheduled_tokens)
            steering = getattr(step, STEERING, None)
            if steering or self._steered:
                self._set_coefficients(steering or {}, num_scheduled_tokens)
            return prepared

        return prepare_and_steer

    def _set_coefficients(self, steering: dict[str, list[float]], scheduled: npt.NDArray[np.int32]) -> None:
        batch = self._runner.input_batch
        coefficients = self._sensor.coefficients
        coefficients.zero_()
        ends = np.cumsum(scheduled)
        for req_id, strengths in steering.items():
            row = batch.req_id_to_index[req_id]
            end, start = int(ends[row]), int(ends[row] - scheduled[row])
            # The prompt's last position predicts the first token: steering begins there, and leaves the rest of the
            # prompt, which the prefix cache shares, as it is.
            unsteered = int(batch.num_prompt_tokens[row]) - 1 - int(batch.num_computed_tokens_cpu[row])
            begin = start + max(unsteered, 0)
            factors = self._steering.factors(max(-unsteered, 0), max(end - begin, 0))
            coefficients[begin:end] = (torch.tensor(strengths) * factors).to(coefficients.device)
        self._steered = bool(steering)
