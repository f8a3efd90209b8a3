"""The policy of one process: bound to all that is served, and exchanged as a whole while requests are under way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from guard.binding import bind_to
from guard.decide import BoundPolicy
from guard.policy import Policy

if TYPE_CHECKING:  # an artifact brings torch, and deciding needs none
    from probes.artifact import Artifact


@dataclass(frozen=True, slots=True)
class PolicySet:
    """The operator's policy, bound to the model's artifact and, as it is for each adapter, to that one's."""

    model: BoundPolicy
    adapters: Mapping[str, BoundPolicy] = field(default_factory=dict)
    """By the adapter's name, in the order of `GuardConfig.adapters`."""
    beside: Self | None = None
    """What is judged on the same scores, and only recorded."""

    @classmethod
    def bind(
        cls, policy: Policy, artifact: "Artifact", adapters: "Mapping[str, Artifact]", beside: Self | None = None
    ) -> Self:
        """Bind `policy` to the model's `artifact` and to each adapter's. Raises `PolicyError` where it does not fit."""
        bound = {name: bind_to(own, policy.of_adapter(name)) for name, own in adapters.items()}
        return cls(bind_to(artifact, policy), bound, beside)

    @property
    def policy(self) -> Policy:
        """The operator's own: how requests are answered, who may ask for what, and what is written down."""
        return self.model.policy

    @property
    def digest(self) -> str:
        """`Policy.digest` of the operator's policy."""
        return self.policy.digest

    @property
    def subjects(self) -> tuple[BoundPolicy, ...]:
        """The model's policy, and then its adapters': by the number of a request's subject."""
        return (self.model, *self.adapters.values())
