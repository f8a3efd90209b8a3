"""A KV connector that keeps every full block it meets in this process, by the block's hash, and loads from there.

It does on a CPU what connectors with a store do, blocks of answers and resumed requests included. vLLM's own example
stores whole prompts only, and cannot load what a resumed request needs.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata
from vllm.v1.request import Request


@dataclass
class Moves(KVConnectorMetadata):
    """Blocks to load and to save in a step, (hash, block), and whose loads vLLM waits for."""

    loads: list[tuple[bytes, int]] = field(default_factory=list)
    saves: list[tuple[bytes, int]] = field(default_factory=list)
    awaited: set[str] = field(default_factory=set)


class BlockStore(KVConnectorBase_V1):
    """Scheduler's and worker's side; `{"own_time": true}` loads as connectors do that let the engine go on
    meanwhile.
    """

    kept: ClassVar[dict[bytes, dict[str, torch.Tensor]]] = {}
    requires_kv_delivery = False

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._size = vllm_config.cache_config.block_size
        self._own_time = self._kv_transfer_config.get_from_extra_config("own_time", False)
        self._requests: dict[str, Request] = {}
        self._begin: dict[str, int] = {}
        self._moves = Moves()
        self._layers: dict[str, torch.Tensor] = {}
        self._arrived: set[str] = set()

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        self._manager = kv_cache_manager

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        begin = number = num_computed_tokens // self._size
        hashes = request.block_hashes
        while number < len(hashes) and (number + 1) * self._size < request.num_tokens and hashes[number] in self.kept:
            number += 1
        self._requests[request.request_id], self._begin[request.request_id] = request, begin
        return (number - begin) * self._size, self._own_time and number > begin

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        begin = self._begin.pop(request.request_id, 0)
        end = begin + num_external_tokens // self._size
        [own] = blocks.get_block_ids()
        self._moves.loads += zip(request.block_hashes[begin:end], own[begin:end], strict=True)
        if num_external_tokens and self._own_time:
            self._moves.awaited.add(request.request_id)

    def build_connector_meta(self, scheduler_output: Any) -> Moves:
        moves, self._moves = self._moves, Moves()
        for name, scheduled in scheduler_output.num_scheduled_tokens.items():
            request = self._requests[name]
            full = min((request.num_computed_tokens + scheduled) // self._size, len(request.block_hashes))
            [own] = self._manager.get_block_ids(name)
            pairs = zip(request.block_hashes[:full], own[:full], strict=True)
            moves.saves += [(digest, block) for digest, block in pairs if digest not in self.kept]
        return moves

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, None]:
        self._requests.pop(request.request_id, None)
        return False, None

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._layers = kv_caches

    def start_load_kv(self, forward_context: Any, **_options: Any) -> None:
        moves = self._get_connector_metadata()
        for digest, block in moves.loads:
            for name, layer in self._layers.items():
                layer[block] = self.kept[digest][name]
        self._arrived |= moves.awaited

    def wait_for_save(self) -> None:
        for digest, block in self._get_connector_metadata().saves:
            self.kept[digest] = {name: layer[block].clone() for name, layer in self._layers.items()}

    def get_finished(self, finished_req_ids: set[str]) -> tuple[None, set[str] | None]:
        arrived, self._arrived = self._arrived, set()
        return None, arrived or None

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **_options: Any) -> None: ...
