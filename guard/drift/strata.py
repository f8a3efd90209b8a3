"""Strata: a bounded number of names in one dimension of traffic, such as its routes or its tenants."""

from guard.journal import Decision
from probes.template import Ending

OTHER = "other"
"""Where the names go for which there is no room."""
UNNAMED = "none"
"""Requests that have no name in this dimension."""


OPEN = Ending.OPEN.value
"""Prompts without any turn that ends as the chat template does."""


def form_of(decision: Decision) -> str:
    """Return in which form a prompt came: all that is known of its template without its text."""
    verdict = decision.verdict
    if verdict.ending is Ending.TEMPLATE:
        return "several turns" if verdict.num_turns > 1 else "one turn"
    if verdict.ending is Ending.OPEN:
        return "left open" if verdict.num_turns > 1 else OPEN
    return verdict.ending.value


class Strata:
    """The first names to come have a stratum each, and all later ones share `OTHER`."""

    def __init__(self, most: int) -> None:
        """`most` names beside `OTHER`."""
        self._most = most
        self.names: set[str] = set()

    def of(self, name: str | None) -> str:
        """Return the stratum of a request with this name."""
        name = name or UNNAMED
        if name in self.names:
            return name
        if len(self.names) >= self._most:
            return OTHER
        self.names.add(name)
        return name
