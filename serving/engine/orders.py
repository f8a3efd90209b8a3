"""The gate's orders to the workers: which prompts' scores are due in a step, who is steered, and what is unknown.

The scheduler knows what every worker would have to find out: where a prompt ends, which KV-cache blocks hold it, and which
of them no forward pass has computed. So the workers are told, and only have to know how their own batch is laid out.

It touches, of `vllm/v1/core/sched/scheduler.py` and what it holds: `kv_cache_manager` (`get_block_ids`; `allocate_slots`,
wrapped where a KV connector loads blocks), `SchedulerOutput` (`num_scheduled_tokens`, `kv_cache_block_copies`) and
`Request` (`num_prompt_tokens`, `num_computed_tokens`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from serving.engine.kv_slots import scoring_group
from serving.engine.wire import ORDERS, Due, Orders, Steer


class OrderBook:
    """What the workers have yet to be asked for."""

    def __init__(self, scheduler: Any) -> None:
        self._group = scoring_group(scheduler.kv_cache_config)
        self._block_size = scheduler.kv_cache_config.kv_cache_groups[self._group].kv_cache_spec.block_size
        self._blocks = scheduler.kv_cache_manager
        self._open: dict[str, tuple[Request, int]] = {}
        self._steered: dict[str, Steer] = {}
        self._unknown: list[int] = []
        if scheduler.connector is not None:
            self._blocks.allocate_slots = self._noting_loads(self._blocks.allocate_slots)

    def open(self, request: Request, subject: int = 0) -> None:
        """Ask for the scores of the request's prompt in the step that finishes it, however often that is run.

        `subject` says whose probes are to score it, as `Due` has it.
        """
        self._open[request.request_id] = request, subject

    def decided(self, request: Request) -> None:
        """Ask no more."""
        self._open.pop(request.request_id, None)

    def steer(self, request: Request, strengths: list[float], begin: int) -> None:
        """Steer the request from the position `begin` on."""
        self._steered[request.request_id] = Steer(strengths, begin)

    def close(self, request: Request) -> None:
        """Forget the request, which is over."""
        self._open.pop(request.request_id, None)
        self._steered.pop(request.request_id, None)

    def give(self, step: SchedulerOutput, watched: Mapping[str, int] = MappingProxyType({})) -> None:
        """Put the orders of a step that was just scheduled onto it; `watched` is as `Orders` has it."""
        if not (self._open or self._steered or self._unknown or step.kv_cache_block_copies or watched):
            return  # as in most steps, in which everyone is in mid-answer
        scheduled = step.num_scheduled_tokens
        orders = Orders(
            due={name: due for name in self._open if name in scheduled and (due := self._due(name, step))},
            steering={name: steer for name, steer in self._steered.items() if name in scheduled},
            unknown=self._unknown,
            copies=[tuple(copy) for copy in step.kv_cache_block_copies or ()],
            watched=dict(watched),
        )
        self._unknown = []
        if orders:
            setattr(step, ORDERS, orders)

    def _due(self, name: str, step: SchedulerOutput) -> Due | None:
        request, subject = self._open[name]
        num_tokens = request.num_prompt_tokens
        # What the step computes is already counted.
        if not 0 <= request.num_computed_tokens - num_tokens < step.num_scheduled_tokens[name]:
            return None
        blocks = self._blocks.get_block_ids(name)[self._group]
        return Due(num_tokens, blocks[: -(-num_tokens // self._block_size)], subject)

    def _noting_loads(self, allocate: Callable[..., Any]) -> Callable[..., Any]:
        def allocate_and_note(
            request: Request, num_new_tokens: int, num_new_computed_tokens: int = 0, *args: Any, **options: Any
        ) -> Any:
            allocated = allocate(request, num_new_tokens, num_new_computed_tokens, *args, **options)
            loaded = options.get("num_external_computed_tokens", 0)
            if allocated is not None and loaded:
                # Before anyone can find these blocks in the prefix cache: their slots hold what was there before.
                own = self._blocks.get_block_ids(request.request_id)[self._group]
                end = num_new_computed_tokens + loaded
                self._unknown += own[num_new_computed_tokens // self._block_size : -(-end // self._block_size)]
            return allocated

        return allocate_and_note
