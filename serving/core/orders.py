"""The gate's orders to the workers: which prompts' scores are due in a step, who is steered, and what is unknown.

The scheduler knows what every worker would have to find out: where a prompt ends, which KV-cache blocks hold it, and which
of them no forward pass has computed. So the workers are told, and only have to know how their own batch is laid out.

It touches, of `vllm/v1/core/sched/scheduler.py` and what it holds: `kv_cache_manager` (`get_block_ids`),
`connector`, `SchedulerOutput` (`num_scheduled_tokens`, `kv_cache_block_copies`) and
`Request` (`num_prompt_tokens`, `num_computed_tokens`).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from probes.readout import Readout
from probes.template import Turn
from serving.core.external_blocks import ExternalBlocks
from serving.core.scheduled import scheduled_of
from serving.scoring_group import scoring_group
from serving.wire import ORDERS, Due, Orders, Steer


class OrderBook:
    """What the workers have yet to be asked for."""

    def __init__(self, scheduler: Any, readouts: Sequence[Readout] = ()) -> None:
        """`readouts` are those of all probes; where none are given, every token's score is needed."""
        self._group = scoring_group(scheduler.kv_cache_config)
        self._block_size = scheduler.kv_cache_config.kv_cache_groups[self._group].kv_cache_spec.block_size
        self._blocks = scheduler.kv_cache_manager
        self._open: dict[str, tuple[Request, tuple[Turn, ...], int]] = {}
        self._steered: dict[str, Steer] = {}
        self._readouts = readouts
        self._loads: ExternalBlocks | None = None
        if scheduler.connector is not None:
            self._loads = ExternalBlocks(scheduler, self._group, self._block_size, self._first_needed)

    def open(self, request: Request, turns: tuple[Turn, ...], subject: int = 0) -> None:
        """Ask for the scores of the prompt's `turns` in the step that finishes it, however often that is run.

        `subject` says whose probes are to score it, as `Due` has it.
        """
        self._open[request.request_id] = request, turns, subject

    def decided(self, request: Request) -> None:
        """Ask no more."""
        self._open.pop(request.request_id, None)

    def steer(self, request: Request, strengths: list[float], begin: int) -> None:
        """Steer the request from the position `begin` on."""
        self._steered[request.request_id] = Steer(strengths, begin)

    def steer_no_more(self, request: Request) -> None:
        """Steer the request no longer: it asks for something new, which is yet to be decided."""
        self._steered.pop(request.request_id, None)

    def steers(self, request: Request) -> bool:
        """Whether the request is steered already."""
        return request.request_id in self._steered

    def close(self, request: Request) -> None:
        """Forget the request, which is over."""
        self._open.pop(request.request_id, None)
        self._steered.pop(request.request_id, None)

    def give(self, step: SchedulerOutput, watched: Mapping[str, int] = MappingProxyType({})) -> None:
        """Put the orders of a step that was just scheduled onto it; `watched` is as `Orders` has it."""
        if not (self._open or self._steered or self._loads or step.kv_cache_block_copies or watched):
            return  # as in most steps, in which everyone is in mid-answer
        scheduled = step.num_scheduled_tokens
        orders = Orders(
            due={name: due for name in scheduled_of(self._open, scheduled) if (due := self._due(name, step))},
            steering={name: self._steered[name] for name in scheduled_of(self._steered, scheduled)},
            # Before anyone can find these blocks in the prefix cache: their slots hold what was there before.
            unknown=self._loads.take() if self._loads else [],
            copies=[tuple(copy) for copy in step.kv_cache_block_copies or ()],
            watched={name: begin for name, begin in watched.items() if self._is_whole(name)},
        )
        if self._loads:
            self._loads.copied(orders.copies)
        if orders:
            setattr(step, ORDERS, orders)

    def _is_whole(self, name: str) -> bool:
        """Whether the step computes the last of the prompt, or what follows it. Before that no answer is read."""
        request, *_ = self._open.get(name, (None,))
        return request is None or request.num_computed_tokens >= request.num_prompt_tokens

    def _due(self, name: str, step: SchedulerOutput) -> Due | None:
        request, turns, subject = self._open[name]
        num_tokens = request.num_prompt_tokens
        # What the step computes is already counted.
        if not 0 <= request.num_computed_tokens - num_tokens < step.num_scheduled_tokens[name]:
            return None
        blocks = self._blocks.get_block_ids(name)[self._group]
        return Due(turns, blocks[: -(-num_tokens // self._block_size)], subject)

    def _first_needed(self, request: Request) -> int | None:
        if request.request_id not in self._open:
            return None
        first, *_ = self._open[request.request_id][1]
        return min((readout.positions(first)[0] for readout in self._readouts), default=0)
