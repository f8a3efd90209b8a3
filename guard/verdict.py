"""Verdicts: what the guard decided about one request, and how that travels."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter

from probes.template import Ending


class Action(StrEnum):
    """What happens to a request, from mildest to most severe."""

    ALLOW = "allow"
    FLAG = "flag"
    STEER = "steer"
    BLOCK = "block"

    @property
    def severity(self) -> int:
        """Rank among the actions: 0 is the mildest."""
        return _SEVERITY[self]

    @property
    def tightened(self) -> "Action":
        """What a client may ask for instead: a block for whatever is not allowed."""
        return Action.ALLOW if self is Action.ALLOW else Action.BLOCK


_SEVERITY = {action: rank for rank, action in enumerate(Action)}


class Mode(StrEnum):
    """`enforce` acts on decisions; `shadow` only records them."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class Unscored(StrEnum):
    """Why a prompt has no score. Closed, because it labels a metric."""

    MISSING = "missing"
    """The worker sent no score for a finished prompt."""
    TAP_SILENT = "tap_silent"
    """A tapped block did not write in a step that computed a token which the readouts need."""
    NOT_FINITE = "not_finite"
    """A score is NaN or infinite, or a token that the readout needs was never scored."""
    ADAPTER = "adapter"
    """The request's adapter makes it another model, and no artifact was given for that."""
    SENSOR_ERROR = "sensor_error"
    """Reading or reducing the token scores failed in the worker."""
    OFF_TEMPLATE = "off_template"
    """The prompt does not end as the chat template does, and a rule's probes are not certified for how it ends."""
    MEDIA = "media"
    """The prompt has images, audio or video in it, for which no probe is certified, and no rule fired on its text."""
    POLICY_ERROR = "policy_error"
    """The decision itself failed."""
    NO_VERDICT = "no_verdict"
    """The engine sent an answer that nothing had decided on: the gate is not in it."""
    BYPASSED = "bypassed"
    """The request came to the engine by another way than through the guard's part of the API server."""
    ABORTED = "aborted"
    """The client left, or the request failed, before its prompt was scored."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a policy that is only recorded would have decided on the same scores."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    decision: Action
    policy: str
    """Its label."""
    rule: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one prompt."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    decision: Action
    """What the policy says."""
    action: Action
    """What was done: `decision`, or `allow` in shadow mode."""
    mode: Mode
    scores: dict[str, float]
    """Raw score per probe and per combination; empty when unscored."""
    policy: str
    """`Policy.label` of the policy that decided."""
    event_id: str
    rule: str | None = None
    """The rule that fired, if one did."""
    category: str | None = None
    """What that rule is about, as the policy has it."""
    policy_digest: str = ""
    """`Policy.digest` of that policy."""
    unscored: Unscored | None = None
    constraint: str | None = None
    """What the request asked of its answer that made a steer a block, if anything did: a field of vLLM's
    `SamplingParams`."""
    decision_seconds: float = 0.0
    ending: Ending = Ending.TEMPLATE
    """How the prompt ends."""
    num_turns: int = 0
    """Turns that were judged; 0 where there are no scores."""
    last_scores: dict[str, float] | None = None
    """Scores of the last turn that ends as the chat template does, where `scores` are those of another turn."""
    beside: Beside | None = None
    """What the policy that is judged beside would have decided, where there is one."""

    def blocked_for(self, constraint: str) -> Self:
        """Return a block in the place of this steer, which the request's `constraint` would undo."""
        action = Action.BLOCK if self.mode is Mode.ENFORCE else Action.ALLOW
        return replace(self, decision=Action.BLOCK, action=action, constraint=constraint)

    @property
    def usual_scores(self) -> dict[str, float]:
        """Scores to compare with calibration's, which are of prompts' last turns.

        `scores` are chosen for what rules find in them. The larger of several turns' says nothing of each.
        """
        return self.scores if self.last_scores is None else self.last_scores

    def to_wire(self) -> dict[str, Any]:
        """Return plain data, fit for msgpack."""
        wire: dict[str, Any] = _wire().dump_python(self, mode="json")
        return wire

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> "Verdict":
        """Read what `to_wire` wrote, on the far side of a process boundary. Raises `ValueError` for anything else."""
        return _wire().validate_python(wire)


@cache
def _wire() -> TypeAdapter[Verdict]:
    return TypeAdapter(Verdict)
