"""What the guard does around a forward pass, the same for every model runner.

Before it: forget the last one, and set this one's steering. After it: keep the tokens' scores by KV-cache slot, and
start the finished prompts' scores on their way. A runner's adapter (`runner_v1`, `runner_v2`) knows the batch's layout.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from vllm.distributed import get_pp_group, get_tp_group, tensor_model_parallel_all_reduce
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

from probes.errors import ModelError
from probes.scoring import ProbeBank
from probes.steering import SteeringBank
from serving.wire import NO_ORDERS, Orders
from serving.worker.host_copy import index_on
from serving.worker.kv_slots import KVSlots, room_for_cache
from serving.worker.pending_answers import PendingAnswers
from serving.worker.pending_scores import DuePrompt, PendingScores, Reading
from serving.worker.sensor import Sensor
from serving.worker.tap import note_at_rest, silence

logger = init_logger("vllm.foreguard.worker")

_AGREEMENT = 1e-3
"""How far ranks may be apart, relative and absolute: they add up the same numbers."""


class Places(NamedTuple):
    """Where some requests stand in a batch, int64 `[R]` each."""

    starts: npt.NDArray[np.int64]
    """Each one's first row."""
    stops: npt.NDArray[np.int64]
    """The row after its last."""
    positions: npt.NDArray[np.int64]
    """The position of its first row's token."""


class Layout(Protocol):
    """How the batch of the pass is laid out."""

    def places(self, request_ids: Sequence[str]) -> Places:
        """Return where the requests stand in the batch."""
        ...

    def slots(self, group: int) -> torch.Tensor:
        """Return the KV-cache slots of the batch's rows in a KV-cache group, int64, and maybe others behind them."""
        ...


class GuardedPass:
    """Carries steering to the sensor before a forward pass, and scores from it after."""

    def __init__(
        self,
        sensor: Sensor,
        probes: ProbeBank,
        steering: SteeringBank,
        subjects: Sequence[slice] = (slice(None),),
        watched: Sequence[int] = (),
    ) -> None:
        """`subjects` says which of the bank's probes score the model itself, and which each of its adapters.

        `watched` are the channels that watches read, of all subjects' watches in turn.
        """
        self._sensor = sensor
        self._probes = probes
        self._steering = steering
        self._subjects = subjects
        self._watched = np.array(watched, dtype=np.int64)
        self._partial = bool(len(sensor.split) or len(sensor.elsewhere))
        self._steered = 0
        note_at_rest(sensor.coefficients, at_rest=True)
        self._orders = NO_ORDERS
        self._num_tokens = 0
        self._layout: Layout | None = None
        self._received: torch.Tensor | None = None
        self._slots: KVSlots | None = None
        self._last: PendingScores | None = None

    @property
    def num_probes(self) -> int:
        """K: how many scores a request has."""
        return len(self._probes.names)

    def room_for_cache(self, available: int, specs: Iterable[KVCacheSpec]) -> int:
        """Return how many of `available` bytes the KV cache of layers with these `specs` may have beside the scores."""
        return (
            room_for_cache(available, specs, self._sensor.parts.shape[1]) if get_pp_group().is_last_rank else available
        )

    def allocate(self, kv_cache: KVCacheConfig) -> None:
        """Make room for the scores of every KV-cache slot, on the pipeline's last stage, where all parts meet."""
        if get_pp_group().is_last_rank:
            self._slots = KVSlots(kv_cache, self._sensor.parts)

    def forget_all(self) -> None:
        """Make every score unknown that is kept: the KV cache was emptied behind the scheduler's back."""
        if self._slots is not None:
            self._slots.forget_all()

    def begin(self, num_tokens: int, orders: Orders) -> None:
        """Take in how many tokens the next pass has, none if there is no pass, and what the gate asks of it."""
        self._num_tokens, self._orders, self._layout, self._received = num_tokens, orders, None, None
        if self._slots is not None and (orders.unknown or orders.copies):
            self._slots.forget(orders.unknown)
            self._slots.copy(orders.copies)

    def lay_out(self, layout: Layout) -> None:
        """Forget the last pass, and set the steering of this one, whose batch is now laid out.

        A tap that stays silent in it leaves NaN, which is never a score.
        """
        self._layout = layout
        silence(self._sensor.parts, self._num_tokens)
        if self._orders.steering or self._steered:
            self._set_coefficients(layout)

    def collect(self) -> tuple[Reading, ...]:
        """Keep the scores of the pass just run, and start those that are asked for on their way."""
        if self._slots is None or not self._num_tokens:
            return ()
        asked = self._orders
        try:
            self._keep(self._slots)
            due = self._due(self._slots) if asked.due else None
            answers = self._answers(self._slots) if asked.watched else None
        except Exception:
            # What the slots hold is now anyone's guess, so nothing in them is known any more. If even that fails, so
            # does the engine: better no answer than an unguarded one.
            logger.exception("the guard failed after a forward pass; its prompts and answers are unscored")
            self._slots.forget_all()
            due = PendingScores.lost(self._probes, asked.due) if asked.due else None
            answers = PendingAnswers.lost(self._probes) if asked.watched else None
        self._last = due or self._last
        return tuple(reading for reading in (due, answers) if reading)

    def send(self) -> torch.Tensor:
        """Return what was read up to this pipeline stage, `[T, P]`, for the next one; the next pass leaves it alone."""
        self._complete()
        return self._sensor.parts[: self._num_tokens].clone()

    def receive(self, parts: torch.Tensor) -> None:
        """Take in what was read up to the pipeline stage before."""
        self._received = parts

    def require_agreement(self) -> None:
        """Raise `ModelError` unless this rank's taps all ran in the last pass, and it read what its group's first rank
        read.

        For the self-test, when one prompt alone has passed; all ranks call it.
        """
        own = self._last.resolve() if self._last else {}
        group = get_tp_group()
        # Before anything is raised: no rank is left waiting for another.
        first = group.broadcast_object(own if group.rank_in_group == 0 else None, src=0)
        if own.keys() != first.keys():
            raise _disagrees(f"it scored {sorted(own)}, the first rank {sorted(first)}")
        for request, scores in own.items():
            if isinstance(scores, str) or not np.allclose(scores, first[request], rtol=_AGREEMENT, atol=_AGREEMENT):
                raise _disagrees(f"it read {scores}, the first rank {first[request]}")

    def _keep(self, kept: KVSlots) -> None:
        if self._layout is None:
            raise RuntimeError("the model runner made a pass without laying out its batch")
        self._complete()
        kept.keep(self._layout.slots(kept.group), self._num_tokens)

    def _due(self, kept: KVSlots) -> PendingScores:
        prompts = {
            request: DuePrompt(due.turns, tuple(map(self._probes.positions, due.turns)), self._subjects[due.subject])
            for request, due in self._orders.due.items()
        }
        blocks = [due.blocks for due in self._orders.due.values() for _ in due.turns]
        slots = kept.slots(blocks, [positions for prompt in prompts.values() for positions in prompt.positions])
        return PendingScores.on_their_way(self._probes, prompts, kept.take(slots))

    def _answers(self, kept: KVSlots) -> PendingAnswers:
        """Take the scores of the answers' tokens among the pass's rows.

        In the step that finishes a prompt which ends with the beginning of an answer, that beginning comes first. It is
        read from its slots, for the prefix cache may hold it.
        """
        assert self._layout is not None  # noqa: S101 - `_keep` asked
        watched, due = self._orders.watched, self._orders.due
        names, begins = list(watched), np.fromiter(watched.values(), np.int64)
        stops = np.array([due[name].num_tokens if name in due else 0 for name in names], np.int64)
        places = self._layout.places(names)
        firsts = np.maximum(places.positions, np.maximum(begins, stops))
        starts = places.starts + firsts - places.positions
        counts = np.maximum(places.stops - starts, 0)
        # Of each request `counts` rows in a row, from `starts` on.
        rows = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        parts = self._sensor.parts[index_on(self._sensor.parts.device, rows)]
        early = np.flatnonzero(stops > begins)
        if len(early):
            beginnings = [range(begins[place], stops[place]) for place in early]
            slots = kept.slots([due[names[place]].blocks for place in early], beginnings)
            parts = _before(early, kept.take(slots).split([*map(len, beginnings)]), parts.split(counts.tolist()))
            firsts[early], counts[early] = begins[early], counts[early] + stops[early] - begins[early]
        return PendingAnswers.on_their_way(self._probes, self._watched, names, firsts, counts, parts)

    def _complete(self) -> None:
        """Put in what other stages read, and add up what every rank read of its own slice of the neurons.

        A silent tap's NaN reaches all ranks, and the last stage.
        """
        if not self._partial:
            return  # one rank reads it all, as in most set-ups
        split, elsewhere, parts = self._sensor.split, self._sensor.elsewhere, self._sensor.parts[: self._num_tokens]
        if len(split):
            parts.index_copy_(1, split, tensor_model_parallel_all_reduce(parts.index_select(1, split)))
        if self._received is not None:
            parts.index_copy_(1, elsewhere, self._received[: self._num_tokens].index_select(1, elsewhere))

    def _set_coefficients(self, layout: Layout) -> None:
        # A tensor of its own for every step: an earlier one may still be on its way to the device. As long as the last
        # steered one at least, so that nothing of that stays.
        host = torch.zeros(max(self._num_tokens, self._steered), self._sensor.coefficients.shape[1])
        places = layout.places(list(self._orders.steering))
        for steer, start, stop, position in zip(
            self._orders.steering.values(), *(each.tolist() for each in places), strict=True
        ):
            # The prompt before its last position is left as it is: the prefix cache shares it.
            start += max(steer.begin - position, 0)
            factors = self._steering.factors(max(position - steer.begin, 0), max(stop - start, 0))
            host[start:stop] = torch.tensor(steer.strengths) * factors
        if self._sensor.coefficients.is_cuda:
            host = host.pin_memory()
        self._sensor.coefficients[: len(host)].copy_(host, non_blocking=True)
        note_at_rest(self._sensor.coefficients, at_rest=not self._orders.steering)
        self._steered = self._num_tokens if self._orders.steering else 0


def _before(
    places: npt.NDArray[np.int64], first: Sequence[torch.Tensor], pieces: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return all `pieces` in a row, those at some `places` behind what comes `first` there."""
    joined = list(pieces)
    for place, own in zip(places, first, strict=True):
        joined[place] = torch.cat([own, pieces[place]])
    return torch.cat(joined)


def _disagrees(how: str) -> ModelError:
    rank = f"stage {get_pp_group().rank_in_group}, rank {get_tp_group().rank_in_group}"
    return ModelError(
        f"{rank}: {how}", field="self-test", remedy="do not serve with this set-up; report the versions and the model"
    )
