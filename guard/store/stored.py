"""One decision as the store keeps it: plain values, and nothing of the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from guard.journal import Decision
from guard.verdict import Action, Mode, Unscored


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """One decision. What it does not say of itself is None, or 0 for a number."""

    event_id: str
    """The one in the client's header. A store has it once."""
    decision: Action
    """What the policy says."""
    action: Action
    """What was done."""
    mode: Mode
    policy: str
    """`Policy.label`."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    judged: Literal["prompt", "answer"] = "prompt"
    scores: Mapping[str, float] = field(default_factory=dict)
    """Raw scores by probe and combination."""
    request_id: str = ""
    caller: str | None = None
    tenant: str | None = None
    route: str | None = None
    model: str | None = None
    """What answers: the model by the name that it is served by, or an adapter."""
    rule: str | None = None
    category: str | None = None
    unscored: Unscored | None = None
    constraint: str | None = None
    policy_digest: str | None = None
    replica: str | None = None
    """The name of the server that decided."""
    would: Action | None = None
    """What the policy that is judged beside would have decided, where there is one."""
    would_policy: str | None = None
    would_rule: str | None = None
    would_category: str | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Of an answer: its length when it crossed a threshold."""
    seconds: float = 0.0
    """From the request to the decision: what the client waited for it."""
    decision_seconds: float = 0.0
    """From scores to verdict."""


def stored(decision: Decision, *, replica: str | None = None, model: str | None = None) -> StoredDecision:
    """Return a decision of the journal as the store keeps it.

    `replica` is the name of this server, and `model` what it calls the model itself, where no adapter answers.
    """
    verdict, beside = decision.verdict, decision.verdict.beside
    return StoredDecision(
        event_id=verdict.event_id,
        decision=verdict.decision,
        action=verdict.action,
        mode=verdict.mode,
        policy=verdict.policy,
        at=decision.at,
        judged=decision.judged,
        scores=verdict.scores,
        request_id=decision.request_id,
        caller=decision.caller,
        tenant=decision.tenant,
        route=decision.route,
        model=decision.model or model,
        rule=verdict.rule,
        category=verdict.category,
        unscored=verdict.unscored,
        constraint=verdict.constraint,
        policy_digest=verdict.policy_digest or None,
        replica=replica,
        would=beside.decision if beside else None,
        would_policy=beside.policy if beside else None,
        would_rule=beside.rule if beside else None,
        would_category=beside.category if beside else None,
        prompt_tokens=decision.prompt_tokens,
        answer_tokens=decision.num_tokens,
        seconds=decision.seconds,
        decision_seconds=verdict.decision_seconds,
    )
