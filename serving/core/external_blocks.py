"""What a KV connector brings in: keys and values that no forward pass here has computed, and so has not scored.

A prompt whose verdict is open computes the tokens that its readouts need, whatever the connector has of them: its
verdict is that of the prompt alone. One that is decided loads as without a guard, for instance when it resumes after a
preemption. What it loaded can be found in the prefix cache by another prompt; one that needs scores there computes
those tokens anew.

It touches, of `vllm/v1/core/sched/scheduler.py` and what it holds: `_get_local_prefix_cache_hit`, which the gate
overrides; `connector.get_num_new_matched_tokens` and `kv_cache_manager.allocate_slots`, both wrapped, and only where
there is a connector; and calls `evict_blocks` and `get_block_ids` of `kv_cache_manager`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.request import Request

from probes.errors import ServingError

FirstNeeded = Callable[[Request], int | None]
"""Says at which position the scores begin that a request's verdict waits for; None where it waits for none."""


class ExternalBlocks:
    """Watches which KV-cache blocks are loaded, and keeps prompts whose scores are due from relying on them."""

    def __init__(self, scheduler: Any, group: int, block_size: int, first_needed: FirstNeeded) -> None:
        """`group` is the KV-cache group by whose blocks of `block_size` tokens scores are kept.

        Raises `ServingError` where vLLM looks into its prefix cache without asking the scheduler.
        """
        _require_asked(scheduler)
        self._group, self._block_size, self._first_needed = group, block_size, first_needed
        self._cache = scheduler.kv_cache_manager
        self._loaded: set[int] = set()
        self._new: list[int] = []
        self._match = scheduler.connector.get_num_new_matched_tokens
        self._allocate = self._cache.allocate_slots
        scheduler.connector.get_num_new_matched_tokens = self._match_unneeded
        self._cache.allocate_slots = self._allocate_and_note

    def take(self) -> list[int]:
        """Return the blocks that were given to a load since the last call."""
        new, self._new = self._new, []
        return new

    def copied(self, copies: Sequence[tuple[int, int]]) -> None:
        """Take in which blocks are copied, (from, to)."""
        self._loaded |= {to for by, to in copies if by in self._loaded}

    def find_scored(self, request: Request, find: Callable[[Request], Any]) -> Any:
        """Return what `find` has of the request in the prefix cache, without blocks that it needs scores of."""
        while True:
            hit = find(request)
            needed, found = self._first_needed(request), hit[0].blocks[self._group]
            begin = len(found) if needed is None else needed // self._block_size
            unscored = {block.block_id for block in found[begin:]} & self._loaded
            if not unscored:
                return hit
            # Out of the cache, not out of the hands of whoever runs on them. There may be others of the same content.
            self._cache.evict_blocks(unscored)

    def _match_unneeded(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens the connector may load beyond `num_computed_tokens`, and whether it does so in its own
        time.

        All that it has, or none. It is asked in any case, as vLLM asks it for requests that read no cache.
        """
        matched, in_its_own_time = self._match(request, num_computed_tokens)
        needed = self._first_needed(request)
        if needed is None or (matched is not None and num_computed_tokens + matched <= needed):
            return matched, in_its_own_time
        return 0, False

    def _allocate_and_note(
        self, request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any, **options: Any
    ) -> Any:
        allocated = self._allocate(request, num_new_tokens, num_new_computed_tokens, *args, **options)
        if allocated is None:
            return allocated
        # Whatever a new block held before, a pass is about to fill it.
        self._loaded.difference_update(block.block_id for block in allocated.blocks[self._group])
        if loaded := options.get("num_external_computed_tokens", 0):
            own = self._cache.get_block_ids(request.request_id)[self._group]
            end = num_new_computed_tokens + loaded
            blocks = own[num_new_computed_tokens // self._block_size : -(-end // self._block_size)]
            self._loaded.update(blocks)
            self._new += blocks
        return allocated


def _require_asked(scheduler: Any) -> None:
    if not any("_get_local_prefix_cache_hit" in vars(owner) for owner in type(scheduler).__mro__ if _is_vllms(owner)):
        raise ServingError(
            "this version of vLLM gives prompts what a KV connector loaded without asking the guard",
            field="--kv-transfer-config",
            remedy="leave it out, or serve with vLLM 0.28 or later",
        )


def _is_vllms(owner: type) -> bool:
    return owner.__module__.startswith("vllm.")
