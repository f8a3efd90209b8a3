"""An exchange: what the guard knows about one HTTP request while it is being answered.

The middleware opens it, the verdict reader fills it in from inside vLLM's request handler, the responder reads it. A
context variable carries it across vLLM's code, which knows nothing of it.
"""

import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from guard.policy import Policy
from guard.policy_set import PolicySet
from guard.verdict import Action, Verdict

current: ContextVar["Exchange | None"] = ContextVar("foreguard_exchange", default=None)


@dataclass(slots=True)
class Prompt:
    """One prompt of the request, and its `n` completions."""

    request_id: str
    n: int
    policies: PolicySet
    """Those that it came in under: by which it is decided and answered, whatever comes into force meanwhile."""
    model: str | None = None
    """The LoRA adapter that answers, if one does."""
    asked: dict[str, object] = field(default_factory=dict)
    """What the caller asked of the gate, as `Exchange` has it."""
    route: str | None = None
    """The guarded route that it came by, if it came by one."""
    caller: str | None = None
    """The policy's name for the caller, if it has one."""
    tenant: str | None = None
    """The policy file's name for the caller's tenant, if it has one."""
    text: str | Callable[[], str] | None = field(default=None, repr=False)
    """What it says, or what makes that text: set where the operator wants prompts kept, and only there."""
    asked_at: float = field(default_factory=time.monotonic)
    """When vLLM was asked, by this process's clock, in seconds."""
    name: str = field(default_factory=lambda: secrets.token_hex(16))
    """What the engine knows it by, and no client can guess."""
    verdict: Verdict | None = None
    """The most severe of those that its completions brought."""
    num_verdicts: int = 0
    num_tokens: int = 0
    blocked: set[int] = field(default_factory=set)
    """Indices of completions that the gate ended."""
    passed: bool = False
    """Whether any completion got through the gate."""
    answer: Verdict | None = None
    """The most severe verdict on any of its answers, where one crossed a threshold."""

    @property
    def stopped(self) -> bool:
        """Whether the model's own answer to the prompt is kept from the client: blocked, or steered away."""
        acted = self.verdict is not None and self.verdict.action in (Action.BLOCK, Action.STEER)
        return acted or bool(self.blocked)

    @property
    def decided(self) -> bool:
        """Whether it is known which completions are blocked."""
        return self.passed or len(self.blocked) == self.n


@dataclass(slots=True)
class Exchange:
    """One HTTP request to a guarded route."""

    policies: PolicySet
    """Those that it came in under: by which it is decided and answered, whatever comes into force meanwhile."""
    by_adapter: Callable[[str], PolicySet] | None = None
    """Takes an adapter's name, and returns the policies that the request comes under where that one answers."""
    asked: dict[str, object] = field(default_factory=dict)
    """What the caller may ask of the gate: `tighten`, `shadow`, `caller`."""
    route: str | None = None
    caller: str | None = None
    """The policy's name for the caller."""
    tenant: str | None = None
    """The policy file's name for the caller's tenant."""
    wants_moderation: bool = False
    sees_scores: bool = False
    wants_usage: bool = False
    """Whether a stream ends with its token counts."""
    wants_echo: bool = False
    """Whether completions begin with their prompt."""
    created: int = field(default_factory=lambda: int(time.time()))
    prompts: list[Prompt] = field(default_factory=list)

    def answered_by(self, adapter: str) -> None:
        """Take note of the adapter that answers: which one is known once vLLM has read the request."""
        if self.by_adapter is not None:
            self.policies = self.by_adapter(adapter)

    @property
    def policy(self) -> Policy:
        """The operator's own."""
        return self.policies.policy

    @property
    def decided(self) -> bool:
        """Whether every prompt has its verdict, so that the answer's first byte may leave."""
        return bool(self.prompts) and all(prompt.decided for prompt in self.prompts)

    @property
    def blocked(self) -> bool:
        """Whether nothing of the request got through the gate."""
        return bool(self.prompts) and all(len(prompt.blocked) == prompt.n for prompt in self.prompts)

    @property
    def any_blocked(self) -> bool:
        """Whether anything of the request was ended by the gate."""
        return any(prompt.blocked for prompt in self.prompts)

    @property
    def verdict(self) -> Verdict | None:
        """The most severe verdict of the request's prompts."""
        verdicts = [prompt.verdict for prompt in self.prompts if prompt.verdict]
        return max(verdicts, key=lambda verdict: (verdict.action.severity, bool(verdict.unscored)), default=None)

    @property
    def answer(self) -> Verdict | None:
        """The most severe verdict on any of the request's answers, as far as they have come."""
        verdicts = [prompt.answer for prompt in self.prompts if prompt.answer]
        return max(verdicts, key=lambda verdict: verdict.action.severity, default=None)

    @property
    def answer_blocked(self) -> bool:
        """Whether an answer of the request has been ended in its middle."""
        return self.answer is not None and self.answer.action is Action.BLOCK

    @property
    def decision(self) -> str:
        """The value of `x-guardrail-decision`."""
        verdict = self.verdict
        if verdict is None or (verdict.action is Action.ALLOW and not all(prompt.verdict for prompt in self.prompts)):
            return "unscored"
        return "unscored" if verdict.unscored and verdict.action is not Action.BLOCK else verdict.action.value
