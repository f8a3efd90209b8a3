"""Which decisions are meant."""

from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select

from guard.store.dictionary import digest_of
from guard.store.row import clean
from guard.store.row_key import first_key
from guard.store.schema import decisions, words

Words = str | tuple[str, ...] | None
"""One word, or any of several; the empty one stands for decisions that have none there. None: whichever it is."""
NONE = ""


@dataclass(frozen=True, slots=True)
class Filters:
    """Decisions that fit all of these. Without any, all decisions do."""

    since: datetime | None = None
    """From then on."""
    until: datetime | None = None
    """Before then."""
    judged: Words = None
    decision: Words = None
    action: Words = None
    mode: Words = None
    caller: Words = None
    tenant: Words = None
    route: Words = None
    model: Words = None
    rule: Words = None
    category: Words = None
    unscored: Words = None
    constraint: Words = None
    policy: Words = None
    policy_digest: Words = None
    replica: Words = None
    would: Words = None

    def clauses(self) -> list[ColumnElement[bool]]:
        """Return what a statement asks of `foreguard_decisions`."""
        found = self.span()
        for name in (each.name for each in fields(self) if each.name not in ("since", "until")):
            wanted: Words = getattr(self, name)
            if wanted is not None:
                found.append(_is_any(name, (wanted,) if isinstance(wanted, str) else wanted))
        return found

    def span(self) -> list[ColumnElement[bool]]:
        """Return what of it is about time."""
        found: list[ColumnElement[bool]] = []
        if self.since is not None:
            found.append(decisions.c.key >= first_key(self.since))
        if self.until is not None:
            found.append(decisions.c.key < first_key(self.until))
        return found


def _is_any(name: str, wanted: tuple[str, ...]) -> ColumnElement[bool]:
    column = decisions.c[name]
    digests = [digest_of(clean(word)) for word in wanted if word != NONE]
    among = column.in_(select(words.c.id).where(words.c.digest.in_(digests)))
    return or_(among, column.is_(None)) if NONE in wanted else among
