"""A request's case: all that the gate knows of it, from the question about its prompt to the end of its answer.

A case is asked, decided, acted on and told. Under asynchronous scheduling these may be several steps apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm.v1.request import Request

from guard.answer_rules import BoundAnswerRules
from guard.decide import BoundPolicy
from guard.verdict import Verdict
from probes.template import Ending, Turn
from serving.wire import Steer


class Crossing(NamedTuple):
    """An answer that crossed a threshold, or that could not be read on."""

    verdict: Verdict
    num_tokens: int
    """How many of its tokens had been read."""
    position: int
    """Of the token behind these."""


@dataclass(slots=True, eq=False)
class Case:
    """One request."""

    request: Request
    subject: int | None
    """Whose probes score it: 0 is the model itself, then come its adapters; None is an adapter that has no artifact."""
    turns: tuple[Turn, ...] = ()
    """Of its prompt; none where no probes score it."""
    ending: Ending = Ending.OPEN
    policy: BoundPolicy | None = None
    """By which it is decided, whatever comes into force meanwhile; none where nobody decides, as in a calibration."""
    beside: BoundPolicy | None = None
    """What is judged on the same scores, and only recorded."""
    strengths: list[float] = field(default_factory=list)
    """How strongly each steering vector of all artifacts acts on its answer where it is steered, `[S]`."""
    verdict: Verdict | None = None
    """On its prompt, once it is decided."""
    is_acted_on: bool = False
    """Whether that verdict took effect, which it does when vLLM takes in the first token."""
    held_logprobs: tuple[Any, ...] = ()
    """Log-probabilities of its prompt, while it is computed again to be steered."""
    steering: Steer | None = None
    answer_begin: int | None = None
    """The position of its answer's first token, while the answer is watched. It may be in the prompt."""
    answer_row: int | None = None
    """Its row among the watched answers, once a token was read."""
    crossing: Crossing | None = None
    """What its answer came to, until it is acted on."""
    untold: dict[str, Any] | None = None
    """What the API server is yet to be told, with the request's next output."""

    @property
    def name(self) -> str:
        """VLLM's name for the request."""
        name: str = self.request.request_id
        return name

    @property
    def answer_rules(self) -> BoundAnswerRules | None:
        """The rules on its answer, if its policy has any."""
        return self.policy.answers if self.policy else None

    @property
    def is_due(self) -> bool:
        """Whether its prompt's scores are still needed."""
        return self.verdict is None and bool(self.turns)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is left to do: its verdict was told, and its answer is neither watched nor steered."""
        waits = self.crossing or self.untold or self.held_logprobs or self.steering
        return self.is_acted_on and self.answer_begin is None and not waits


class Cases:
    """The cases of all requests in the engine, by request."""

    def __init__(self) -> None:
        self._all: dict[str, Case] = {}
        self._quiet: set[str] = set()
        """Of these, the ones that `is_quiet` was found of. Most requests of most steps are, and cost one look here."""

    def __len__(self) -> int:
        """How many requests the engine holds."""
        return len(self._all)

    def open(self, case: Case) -> Case:
        """Begin a case, in place of the one that its request had."""
        self._all[case.name] = case
        self._quiet.discard(case.name)
        return case

    def close(self, request: str) -> Case | None:
        """Forget a request, which is over; return its case."""
        self._quiet.discard(request)
        return self._all.pop(request, None)

    def get(self, request: str) -> Case | None:
        """Return the request's case, if it has one."""
        return self._all.get(request)

    def settle(self, case: Case) -> None:
        """Note whether anything is left to do about a case."""
        if case.is_quiet:
            self._quiet.add(case.name)

    def is_quiet(self, request: str) -> bool:
        """Whether nothing is left to do about a request. Of one that is unknown there is."""
        return request in self._quiet

    def are_quiet(self, scheduled: Mapping[str, Any]) -> bool:
        """Return whether nothing is left to do about any of a step's `scheduled` requests."""
        return self._quiet.issuperset(scheduled)

    def active(self, scheduled: Mapping[str, Any]) -> list[Case]:
        """Return the cases, of a step's `scheduled` requests, that something is left to do about.

        The step is gone through, and not the queue: that may hold 50,000 requests, and a step a few hundred.
        """
        if self.are_quiet(scheduled):
            return []
        found = (self._all.get(name) for name in scheduled if name not in self._quiet)
        return [case for case in found if case is not None]
