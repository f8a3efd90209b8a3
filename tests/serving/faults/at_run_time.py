"""Faults that a request brings upon itself, in a server that is otherwise the real one.

A request names its fault twice: in `vllm_xargs`, which reach the engine, and in a header, for the API server. What it
names happens to it, and to nothing else in the server unless the fault is of a kind that cannot be anyone's own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import torch

from guard.decide import BoundPolicy
from guard.metrics import GuardMetrics
from guard.verdict import Unscored, Verdict
from probes.scoring import ProbeBank
from serving.api import responder, verdict_reader
from serving.api.exchange import Prompt
from serving.api.middleware import GuardMiddleware
from serving.api.verdict_reader import VerdictReader
from serving.core.gate import GuardedScheduler
from serving.wire import NO_ORDERS, ORDERS, SCORES
from serving.worker.kv_slots import KVSlots
from serving.worker.runner_v1 import LayoutV1
from serving.worker.worker import GuardedWorker

HEADER = "x-fault"
ARGUMENT = "fault"


class Planted(Exception):
    """The fault itself."""


def _fail(*_args: Any, **_options: Any) -> Any:
    raise Planted


def _fault_of(params: Any) -> str | None:
    return (params.extra_args or {}).get(ARGUMENT) if params is not None else None


class FaultyWorker(GuardedWorker):
    """A worker that fails in the step that finishes a faulty request's prompt."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        self.faults: dict[str, str] = {}
        self.due: list[str] = []
        self.late: dict[str, Any] = {}

    def execute_model(self, scheduler_output: Any) -> Any:
        for new in scheduler_output.scheduled_new_reqs:
            if fault := _fault_of(new.sampling_params):
                self.faults[new.req_id] = fault
        self.due = list(getattr(scheduler_output, ORDERS, NO_ORDERS).due)
        stepping = set(self.due)
        answering = set(scheduler_output.num_scheduled_tokens) - stepping
        faults = {self.faults[name] for name in stepping & self.faults.keys()}
        faults |= {f"{self.faults[name]}, answering" for name in answering & self.faults.keys()}
        with ExitStack() as stack:
            for fault in faults & IN_THE_PASS.keys():
                stack.enter_context(IN_THE_PASS[fault](self))
            return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        faults = {self.faults.get(name) for name in self.due}
        with patch.object(ProbeBank, "scores_of_all", _fail) if "reduction" in faults else ExitStack():
            output = super().sample_tokens(grammar_output)
        if output is None:
            return output
        scores = getattr(output, SCORES, {})
        arriving, self.late = self.late, {}
        for name in set(scores) & self.faults.keys():
            if self.faults[name] == "late":
                self.late[name] = scores[name]
            if self.faults[name] in ("late", "lost"):
                del scores[name]
            if self.faults[name] == "gibberish":
                scores[name] = "no reason that anyone knows"
        if scores or arriving:
            setattr(output, SCORES, scores | arriving)
        return output


@contextmanager
def _without_taps(worker: FaultyWorker) -> Iterator[None]:
    tapped = [m for m in worker.model_runner.get_model().modules() if hasattr(m, "foreguard_matrix")]
    hooks = [module._forward_hooks.copy() for module in tapped]
    for module in tapped:
        module._forward_hooks.clear()
    try:
        yield
    finally:
        for module, kept in zip(tapped, hooks, strict=True):
            module._forward_hooks.update(kept)


@contextmanager
def _tap_that_raises(worker: FaultyWorker) -> Iterator[None]:
    module = next(m for m in worker.model_runner.get_model().modules() if hasattr(m, "foreguard_matrix"))
    handle = module.register_forward_hook(_fail)
    try:
        yield
    finally:
        handle.remove()


def _keeping(value: float) -> Callable[[Any], Any]:
    keep = KVSlots.keep

    def keep_another(self: KVSlots, slots: torch.Tensor, num_tokens: int) -> None:
        self._parts[:num_tokens].fill_(value)
        keep(self, slots, num_tokens)

    return lambda _worker: patch.object(KVSlots, "keep", keep_another)


@contextmanager
def _slowly(_worker: FaultyWorker) -> Iterator[None]:
    """Leave whoever is to kill the process the time to: a short answer could end first on a busy machine."""
    time.sleep(0.02)
    yield


IN_THE_PASS: dict[str, Callable[[Any], Any]] = {
    "sensor": lambda _worker: patch.object(KVSlots, "keep", _fail),
    "adapter": lambda _worker: patch.object(LayoutV1, "slots", _fail),
    "unlaid": lambda worker: patch.object(worker.foreguard, "lay_out", lambda _layout: None),
    "silent": _without_taps,
    "nan": _keeping(float("nan")),
    "infinite": _keeping(float("inf")),
    "tap, answering": _tap_that_raises,
    "engine killed, answering": _slowly,
    "worker killed, answering": _slowly,
}
"""By fault: what makes it happen in a forward pass."""


class FaultyScheduler(GuardedScheduler):
    """A gate that fails on a faulty request."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        for request in self.running:
            if _fault_of(request.sampling_params) == "gate" and request.num_output_tokens > 2:
                raise Planted
        return super().update_from_output(scheduler_output, model_runner_output)

    def _stops(self, case: Any) -> bool:
        return _fault_of(case.request.sampling_params) != "ungated" and super()._stops(case)

    def _decide(self, case: Any) -> Verdict:
        fails = _fault_of(case.request.sampling_params) == "policy"
        with patch.object(BoundPolicy, "judge_turns", _fails_on_scores) if fails else ExitStack():
            return super()._decide(case)


_judge = BoundPolicy.judge_turns


def _fails_on_scores(self: BoundPolicy, turns: Any, *ending: Any, **options: Any) -> Verdict:
    if not isinstance(turns, Unscored):
        raise Planted
    return _judge(self, turns, *ending, **options)


_asked: ContextVar[str] = ContextVar("fault", default="")


def _only_when(fault: str, real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: (instead if _asked.get() == fault else real)(*args, **options)


def _fail_to_record() -> None:
    """Make reading, or counting, a verdict fail for faulty requests' prompts: it is done where their headers are
    unknown.
    """
    record, faulty = VerdictReader._record, []

    def entered(*args: Any, **options: Any) -> Prompt:
        entry = Prompt(*args, **options)
        if _asked.get() in ("verdict_reader", "metrics"):
            faulty.append((entry, _asked.get()))
        return entry

    def record_others(self: VerdictReader, prompt: Prompt, verdict: Verdict, *known: Verdict | None) -> None:
        fault = next((fault for entry, fault in faulty if entry is prompt), None)
        if fault == "verdict_reader" and verdict.unscored is None:
            raise Planted
        with patch.object(GuardMetrics, "observe", _fail) if fault == "metrics" else ExitStack():
            record(self, prompt, verdict, *known)

    verdict_reader.Prompt, VerdictReader._record = entered, record_others


class FaultyVoice(GuardMiddleware):
    """A middleware that fails on a faulty request."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        _fail_to_record()
        responder.guard_headers = _only_when("responder", responder.guard_headers, _fail)

    async def _start(self, state: Any) -> None:
        past = state.engine_client.generate
        await super()._start(state)
        state.engine_client.generate = _only_when("bypass", state.engine_client.generate, past)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = _asked.set(dict(scope.get("headers", ())).get(HEADER.encode(), b"").decode())
        try:
            if _asked.get() == "middleware":
                raise Planted
            await super().__call__(scope, receive, send)
        finally:
            _asked.reset(token)
