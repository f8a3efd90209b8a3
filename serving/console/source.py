"""What the console's pages read: the decision store, the policy, the artifact, and what a server's processes tell.

Any of them may be missing. A console beside a fleet has a store and perhaps an artifact and a policy file; that of one
server's administration has all of them, and may change the policy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from guard.policy_file import parse_policies
from guard.rollout import Rollout
from probes.artifact import Artifact
from probes.errors import ForeguardError, ServingError
from serving.admin.drift_desk import DriftDesk
from serving.admin.policy_desk import PolicyDesk
from serving.config import GuardConfig

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from guard.store.text_vault import TextVault

T = TypeVar("T")
RECENT = 20_000
"""Decisions that pages compute with, the last ones."""


class StoreGone(ServingError):
    """The decision store does not answer."""


@dataclass(frozen=True, slots=True)
class Source:
    """One console's data. Methods block: pages call them in threads."""

    engine: "Engine | None" = None
    vault: "TextVault | None" = None
    """Opens the prompts that are kept, where the operator keeps any."""
    config: GuardConfig | None = None
    """Names the artifact and the policy file."""
    artifact: Artifact | None = None
    desk: PolicyDesk | None = None
    """Changes the policy: the console of one server's administration has it."""
    drift: DriftDesk | None = None

    @property
    def store(self) -> "Engine":
        """The decision store. Raises `ServingError` where there is none."""
        if self.engine is None:
            raise ServingError(
                "this server stores no decisions, so there is nothing to show",
                field="--store",
                remedy="start it with `foreguard serve --store sqlite:///decisions.db`",
            )
        return self.engine

    def text(self) -> str:
        """Return the policy file's text. Raises `ServingError` where there is none."""
        if self.config is None:
            raise ServingError(
                "this console knows no policy", field="--policy", remedy="start it with --artifact and --policy"
            )
        return self.config.policy.read_text(encoding="utf-8")

    def rollout(self) -> Rollout:
        """Return the policy file's policies, bound. Raises `ForeguardError` where that cannot be done."""
        text = self.text()
        if self.config is None or self.artifact is None:
            raise ServingError(
                "this console knows no artifact", field="--artifact", remedy="start it with --artifact and --policy"
            )
        return self.config.bind(parse_policies(text), [self.artifact])

    def read(self, ask: Callable[[], T]) -> T:
        """Return what `ask` reads of the store. Raises `StoreGone` for whatever is wrong with the database."""
        from sqlalchemy.exc import SQLAlchemyError

        from guard.store.engine import reason

        try:
            return ask()
        except SQLAlchemyError as error:
            raise StoreGone(
                f"the decision store does not answer: {reason(error, self.store.url)}",
                field="--store",
                remedy="see that the database runs; the server goes on deciding without it",
            ) from None


def told(error: ForeguardError) -> str:
    """Return an error as a page says it."""
    return f"{error.field}: {error.problem}. {error.remedy[:1].upper()}{error.remedy[1:]}."
