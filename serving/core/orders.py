"""The gate's orders to the workers: which prompts' scores are due in a step, who is steered, and what is unknown.

The scheduler knows what every worker would have to find out: where a prompt ends, which KV-cache blocks hold it, and
which of them no forward pass has computed. So the workers are told, and only have to know how their own batch is laid
out.

It touches, of `vllm/v1/core/sched/scheduler.py` and what it holds: `kv_cache_manager` (`get_block_ids`),
`connector`, `SchedulerOutput` (`num_scheduled_tokens`, `kv_cache_block_copies`) and
`Request` (`num_prompt_tokens`, `num_computed_tokens`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from probes.readout import Readout
from serving.core.case import Case, Cases
from serving.core.external_blocks import ExternalBlocks
from serving.scoring_group import scoring_group
from serving.wire import ORDERS, Due, Orders


class OrderBook:
    """Writes each step's orders, off the cases of the requests in it."""

    def __init__(self, scheduler: Any, cases: Cases, readouts: Sequence[Readout] = ()) -> None:
        """`readouts` are those of all probes; where none are given, every token's score is needed."""
        self._cases = cases
        self._group = scoring_group(scheduler.kv_cache_config)
        self._block_size = scheduler.kv_cache_config.kv_cache_groups[self._group].kv_cache_spec.block_size
        self._blocks = scheduler.kv_cache_manager
        self._readouts = readouts
        self._loads: ExternalBlocks | None = None
        if scheduler.connector is not None:
            self._loads = ExternalBlocks(scheduler, self._group, self._block_size, self._first_needed)

    def attach_to(self, step: SchedulerOutput) -> None:
        """Put the orders of a step that was just scheduled onto it."""
        active = self._cases.active(step.num_scheduled_tokens)
        if not (active or self._loads or step.kv_cache_block_copies):
            return  # as in most steps, in which everyone is in mid-answer
        orders = Orders(
            due={case.name: due for case in active if case.is_due and (due := self._due(case, step))},
            steering={case.name: case.steering for case in active if case.steering},
            # Before anyone can find these blocks in the prefix cache: their slots hold what was there before.
            unknown=self._loads.take() if self._loads else [],
            copies=[tuple(copy) for copy in step.kv_cache_block_copies or ()],
            watched={case.name: begin for case in active if (begin := _answer_begin(case)) is not None},
        )
        if self._loads:
            self._loads.copied(orders.copies)
        if orders:
            setattr(step, ORDERS, orders)

    def prefix_cache_hit(self, request: Request, find: Callable[[Request], Any]) -> Any:
        """Return what `find` has of a request in the prefix cache, as far as its verdict may rely on it."""
        return self._loads.find_scored(request, find) if self._loads else find(request)

    def _due(self, case: Case, step: SchedulerOutput) -> Due | None:
        num_tokens = case.request.num_prompt_tokens
        # What the step computes is already counted.
        if not 0 <= case.request.num_computed_tokens - num_tokens < step.num_scheduled_tokens[case.name]:
            return None
        blocks = self._blocks.get_block_ids(case.name)[self._group]
        return Due(case.turns, blocks[: -(-num_tokens // self._block_size)], case.subject or 0)

    def _first_needed(self, request: Request) -> int | None:
        case = self._cases.get(request.request_id)
        if case is None or not case.is_due:
            return None
        return min((readout.positions(case.turns[0])[0] for readout in self._readouts), default=0)


def _answer_begin(case: Case) -> int | None:
    """Return where the case's watched answer begins, or None in a step that does not reach the end of its prompt."""
    is_whole = not case.is_due or case.request.num_computed_tokens >= case.request.num_prompt_tokens
    return case.answer_begin if is_whole else None
