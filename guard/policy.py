"""Policies: what the operator wants done at which score.

A policy is a YAML file. `Policy` is its validated form; `policy_file.py` reads it and names the line of a fault;
`decide.py` binds it to an artifact and makes decisions. Format: `docs/policy.md`.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from guard.guessable import GUESSABLE
from guard.verdict import Action, Mode, Unscored, Verdict
from probes.manifest import Name
from probes.template import Ending

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

# YAML's `yes` and a quoted "3" are slips, not the numbers 1 and 3.
Number = Annotated[float, Strict()]

DEFAULT_MESSAGE = "I can't help with that request."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TargetFpr(_Strict):
    """A threshold by its promise: on benign traffic like the calibration set's, at most this share is above it.

    `above` it means strictly above; `below` it means not above it, so that bands that share a promise leave no gap.
    """

    target_fpr: Number = Field(gt=0, lt=1)
    confidence: Number = Field(0.95, ge=0.5, lt=1)


class Condition(_Strict):
    """A band of one score: strictly above a threshold, strictly below one, or both."""

    above: Number | TargetFpr | None = None
    below: Number | TargetFpr | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError("a condition needs 'above', 'below' or both")
        above, below = self.above, self.below
        if isinstance(above, float) and isinstance(below, float) and below <= above:
            raise ValueError(f"no score is above {above} and below {below}")
        if isinstance(above, TargetFpr) and isinstance(below, TargetFpr) and above.target_fpr <= below.target_fpr:
            # The rarer promise is the higher threshold: a band runs from the larger rate up to the smaller one.
            raise ValueError(
                f"no score is above the threshold for {above.target_fpr:g} and below the one for {below.target_fpr:g}: "
                "swap the rates"
            )
        return self


class Rule(_Strict):
    """An action and the conditions, all of which must hold, that call for it."""

    name: Label
    action: Literal[Action.FLAG, Action.STEER, Action.BLOCK]
    when: dict[Name, Condition] = Field(min_length=1)
    """Conditions by probe or combination."""
    category: Label | None = None
    """What the rule is about, for records and, where `response.category` says so, for clients; it changes no
    decision."""


class Steering(_Strict):
    """What action `steer` adds, and how much of it."""

    vector: Name = "refusal"
    strength: Number = Field(1.0, gt=0, le=16)
    """In units of the vector's norm."""
    constrained: Literal[Action.BLOCK, Action.STEER] = Action.BLOCK
    """What happens where a request's own constraints on its answer may leave no refusal to steer to."""


class Response(_Strict):
    """What a blocked client gets."""

    style: Literal["refusal", "error"] = "refusal"
    message: str = Field(DEFAULT_MESSAGE, min_length=1, max_length=2000)
    message_in: Literal["content", "refusal", "both"] = "both"
    """Where a blocked chat completion has the message."""
    category: bool = False
    """Whether the client is told the category of the rule that stopped it."""


class DecisionLog(_Strict):
    """Which decisions the server writes to its log, and what of them."""

    which: Literal["none", "notable", "all"] = "notable"
    """`notable` is every decision but `allow`, and every prompt without a score."""
    scores: bool = False


class Caller(_Strict):
    """A caller whom the operator trusts with more than the public gets."""

    name: Label
    key_sha256: Digest
    """SHA-256 of the bearer token, in hexadecimal: the policy holds no secret."""
    may_shadow: bool = False
    """Whether `moderation: {mode: score}` from this caller records without acting."""
    sees_scores: bool = False
    may_choose: tuple[Label, ...] = ()
    """Variants of the policy that this caller may ask for."""

    def is_known_by(self, digest: object) -> bool:
        """Return whether `digest` is that of this caller's token; how long it takes tells nothing of either."""
        return isinstance(digest, str) and hmac.compare_digest(self.key_sha256.encode(), digest.encode())

    @field_validator("key_sha256")
    @classmethod
    def _is_not_guessable(cls, digest: str) -> str:
        if digest in GUESSABLE:
            raise PydanticCustomError(
                "guessable_key",
                "the digest is that of {word}, which anyone would try",
                {"word": repr(GUESSABLE[digest])},
            )
        return digest


class Policy(_Strict):
    """A whole policy. Of the rules that fire, the most severe action wins; among equals, the first."""

    name: Label
    version: Label
    mode: Mode = Mode.ENFORCE
    artifact: Digest | None = None
    """Digest of the only artifact of a model itself that this policy may run with."""
    adapters: dict[str, Digest] = {}
    """Digests of the only artifacts that adapters may have, by the adapter's name."""
    on_unscored: Literal[Action.BLOCK, Action.FLAG, Action.ALLOW] = Action.BLOCK
    off_template: Literal[Action.BLOCK, Action.FLAG, Action.ALLOW] = Action.BLOCK
    """What is done where a prompt does not end as the chat template does, and a rule's probes are not certified for
    that."""
    on_media: Literal[Action.BLOCK, Action.FLAG, Action.ALLOW] = Action.BLOCK
    """What is done where a prompt has images, audio or video in it: no probe is certified for what these say."""
    special_tokens: Literal["judge", "refuse"] = "judge"
    """What is done where a request's text holds one of the tokenizer's special tokens: they divide turns as the chat
    template's own do, and are judged so, or the request is refused."""
    combine: dict[Name, Annotated[dict[Name, Number], Field(min_length=1)]] = {}
    """Weighted sums of probe scores, usable in rules like probes."""
    rules: tuple[Rule, ...] = Field(min_length=1)
    answer_rules: tuple[Rule, ...] = ()
    """Rules on the answer, while it is generated, by watches of the artifact. None: answers are not watched."""
    steering: Steering | None = None
    response: Response = Response()
    decision_log: DecisionLog = DecisionLog()
    expose_scores: bool = False
    """Whether every client sees scores. Scores help an attacker search for what passes."""
    callers: tuple[Caller, ...] = ()
    _digest: str = PrivateAttr("")
    _variant: str = PrivateAttr("")

    def model_post_init(self, _context: Any, /) -> None:
        """Take the digest, once: copies for an artifact are of the same policy."""
        self._digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        """Whether both say the same: a copy with other numbers keeps the digest of the policy that was read."""
        return isinstance(other, Policy) and self.model_dump() == other.model_dump()

    @property
    def label(self) -> str:
        """`name@version`, or `name@version+variant`, as clients and records see it."""
        return f"{self.name}@{self.version}" + (f"+{self._variant}" if self._variant else "")

    @property
    def variant(self) -> str:
        """Which of its file's variants it is; empty for the file's own policy."""
        return self._variant

    @property
    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of all that the policy says: whether two processes read the same."""
        return self._digest

    def in_file(self, content: str, variant: str = "") -> Self:
        """Return the policy as one of a file that says more, by its `content`: as the `variant` of that name, if it is
        one.
        """
        policy = self.model_copy()
        policy._variant = variant  # noqa: SLF001 - of its own class
        policy._digest = hashlib.sha256(f"{self._digest}{variant}{content}".encode()).hexdigest()[:16]  # noqa: SLF001
        return policy

    def with_combinations(self, combinations: Mapping[str, Mapping[str, float]]) -> Self:
        """Return the policy with an artifact's combinations at hand; those that it defines itself are its own."""
        return self.model_copy(
            update={"combine": {name: dict(each) for name, each in combinations.items()} | self.combine}
        )

    def of_adapter(self, name: str) -> Self:
        """Return the policy as the adapter `name` has it, whose artifact may be pinned and is none of the model's."""
        return self.model_copy(update={"artifact": self.adapters.get(name)})

    def verdict(
        self,
        decision: Action,
        scores: Mapping[str, float] = MappingProxyType({}),
        *,
        rule: str | None = None,
        category: str | None = None,
        unscored: Unscored | None = None,
        shadow: bool = False,
        began: float | None = None,
        ending: Ending = Ending.TEMPLATE,
        num_turns: int = 0,
        last_scores: Mapping[str, float] | None = None,
    ) -> Verdict:
        """Return the verdict that carries out `decision`, or in shadow mode records it; `began` is when it was
        begun.
        """
        mode = Mode.SHADOW if shadow else self.mode
        return Verdict(
            decision=decision,
            action=decision if mode is Mode.ENFORCE else Action.ALLOW,
            mode=mode,
            scores=dict(scores),
            policy=self.label,
            policy_digest=self.digest,
            event_id=f"fge_{secrets.token_hex(12)}",
            rule=rule,
            category=category,
            unscored=unscored,
            decision_seconds=0.0 if began is None else time.perf_counter() - began,
            ending=ending,
            num_turns=num_turns,
            last_scores=None if last_scores is None else dict(last_scores),
        )

    @model_validator(mode="after")
    def _rules_are_told_apart(self) -> Self:
        rules = [rule.name for rule in (*self.rules, *self.answer_rules)]
        for what, names in (("rules", rules), ("callers", [c.name for c in self.callers])):
            if len(names) != len(set(names)):
                raise ValueError(f"{what}: names must be unique")
        return self

    @model_validator(mode="after")
    def _steer_has_a_vector(self) -> Self:
        rules = (*self.rules, *self.answer_rules)
        if self.steering is None and any(rule.action is Action.STEER for rule in rules):
            raise ValueError("a rule steers, but the policy has no 'steering' section")
        return self

    @model_validator(mode="after")
    def _answers_only_rise(self) -> Self:
        for rule in self.answer_rules:
            for score, condition in rule.when.items():
                if condition.below is not None:
                    raise ValueError(f"answer_rules: {score} only ever rises along an answer, so it has no 'below'")
        return self
