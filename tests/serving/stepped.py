"""vLLM's real scheduler with the gate in it, step by step; only what its workers would do is played."""

import hashlib
from collections import deque
from types import SimpleNamespace

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from serving.config import GuardConfig
from serving.core.gate import guarded_scheduler
from serving.wire import EXTRA, NO_ORDERS, ORDERS, SCORES, VERDICT
from tests.serving.lab import MODEL

BLOCK, BLOCKS = 16, 64


def _digest(content: object) -> bytes:
    return hashlib.sha256(repr(content).encode()).digest()


class Stepped:
    """A guarded scheduler whose workers sample token 1 and read `scores` of a prompt, 0 where it says nothing."""

    def __init__(self, guard: GuardConfig, *, under_way: int = 1, stages: int = 1, asynchronous: bool = False, **args):
        """`under_way` is how many steps are scheduled before the first one's output is there."""
        init_none_hash(_digest)
        config = EngineArgs(str(MODEL), enforce_eager=True, max_model_len=256, **args).create_engine_config()
        config.additional_config = guard.to_vllm()
        config.cache_config.num_gpu_blocks, config.cache_config.block_size = BLOCKS, BLOCK
        # Neither can be asked for on a CPU; to the scheduler they are numbers.
        config.parallel_config.pipeline_parallel_size = stages
        config.scheduler_config.async_scheduling = asynchronous
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
        self.scheduler = guarded_scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=SimpleNamespace(accept_tokens=lambda *_: True),
            block_size=BLOCK,
        )
        self.scores: dict[str, float] = {}
        self.tokens: dict[str, list[int]] = {}
        self.verdicts: dict[str, dict] = {}
        self.told: dict[str, dict] = {}
        """All that the gate told of each request."""
        self.asked: dict[str, int] = {}
        self._hasher = get_request_block_hasher(BLOCK, _digest)
        self._under_way = under_way
        self._pending: deque = deque()

    def add(self, name: str, prompt, max_tokens: int = 8, *, resumable: bool = False, **params) -> None:
        """Add a request; a `resumable` one is a session, whose next input is added under the same name."""
        made = SamplingParams(max_tokens=max_tokens, **params)
        made.update_from_generation_config({}, 2)
        self.scheduler.add_request(
            Request(name, list(prompt), made, None, block_hasher=self._hasher, resumable=resumable)
        )

    def step(self):
        """Schedule a step, and process the oldest one's output once enough are under way.

        Returns the scheduled step and its orders.
        """
        step = self.scheduler.schedule()
        orders = getattr(step, ORDERS, NO_ORDERS)
        for name in orders.due:
            self.asked[name] = self.asked.get(name, 0) + 1
        self._pending.append((step, self._output(step, orders)))
        if len(self._pending) >= self._under_way:
            outputs = self.scheduler.update_from_output(*self._pending.popleft())
            for output in [output for client in outputs.values() for output in client.outputs]:
                self.tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
                if output.kv_transfer_params:
                    told = self.told.setdefault(output.request_id, {})
                    told.update(output.kv_transfer_params[EXTRA])
                    self.verdicts[output.request_id] = told[VERDICT]
        return step, orders

    def _output(self, step, orders) -> ModelRunnerOutput:
        names = list(step.num_scheduled_tokens)
        requests = [self.scheduler.requests[name] for name in names]
        sampled = [[] if request.is_prefill_chunk else [1] for request in requests]
        output = ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled)
        setattr(output, SCORES, {name: [[self.scores.get(name, 0.0)]] for name in orders.due})
        return output

    def blocks(self, name: str) -> list[int]:
        return self.scheduler.kv_cache_manager.get_block_ids(name)[0]
