"""The journal: every decision of a process, handed to each sink that wants it (metrics, the log, later a store).

A sink that fails costs a decision in that sink and nothing else: the verdict holds, and the other sinks have it.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Literal, Protocol

from guard.policy import Policy
from guard.verdict import Verdict

logger = logging.getLogger("vllm.foreguard.journal")


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and what it is on. It holds nothing of the prompt's text and nothing of the answer's."""

    verdict: Verdict
    policy: Policy
    """By which it was made."""
    judged: Literal["prompt", "answer"] = "prompt"
    request_id: str = ""
    """vLLM's own."""
    route: str | None = None
    """The guarded route that the request came by, if it came by one."""
    model: str | None = None
    """The LoRA adapter that answers, if one does."""
    caller: str | None = None
    """The policy's name for the caller, if it has one."""
    tenant: str | None = None
    """The policy file's name for the caller's tenant, if it has one."""
    prompt_tokens: int = 0
    num_tokens: int = 0
    """Of an answer: how long it was when it crossed a threshold."""
    seconds: float = 0.0
    """From when vLLM was asked to the decision: what a client waits for it, queue and prefill and all."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Sink(Protocol):
    """Takes decisions, one at a time, in the order in which they were made."""

    def record(self, decision: Decision) -> None:
        """Take a decision in. What it raises is logged, and the decision is counted as dropped."""
        ...

    def give_up(self) -> None:
        """Take in that a prompt ended before its verdict came: its client left, or its request failed."""
        ...


class Journal:
    """Hands decisions to its sinks."""

    def __init__(self, *sinks: Sink, on_drop: Callable[[], None] = lambda: None) -> None:
        """`on_drop` is called for each decision that a sink could not take."""
        self._sinks = sinks
        self._on_drop = on_drop

    def record(self, decision: Decision) -> None:
        """Hand a decision to every sink."""
        for sink in self._sinks:
            self._try(partial(sink.record, decision))

    def give_up(self) -> None:
        """Tell every sink of a prompt that ended before its verdict came."""
        for sink in self._sinks:
            self._try(sink.give_up)

    def _try(self, hand_on: Callable[[], None]) -> None:
        try:
            hand_on()
        except Exception:
            # The verdict holds, counted or not: a full disk under the metrics is no reason to answer nobody.
            logger.exception("a decision could not be recorded")
            with suppress(Exception):
                self._on_drop()
