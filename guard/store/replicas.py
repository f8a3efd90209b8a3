"""Which policy each replica of a fleet goes by: what the store can tell of servers that tell nothing else."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, func, select

from guard.store.dictionary import Dictionary
from guard.store.filters import Filters
from guard.store.reader import ALL
from guard.store.row_key import time_of
from guard.store.schema import decisions, words


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica at its last decision. It says nothing of the time since."""

    replica: str
    """Empty for decisions without a replica's name."""
    policy: str
    """`Policy.label` of the last decision."""
    digest: str | None
    """`Policy.digest` of the last decision: that of a variant, where one decided."""
    last: datetime
    """When that was, by the replica's own clock, in UTC."""
    decisions: int
    """How many fit the filters."""


def replicas(engine: Engine, filters: Filters = ALL) -> list[Seen]:
    """Return each replica that has decisions which fit, by name.

    Keys are in the order of each replica's own clock, so that a clock that is off orders a replica's decisions
    rightly, and shows in `last`. Raises `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    kind = decisions.c.replica, decisions.c.policy, decisions.c.policy_digest
    wanted = select(*kind, func.max(decisions.c.key), func.count()).where(*filters.clauses()).group_by(*kind)
    with engine.connect() as connection:
        found = connection.execute(wanted).all()
        named = Dictionary(engine, words).all(connection)
    last: dict[int | None, tuple[int, int, int | None]] = {}
    counts: dict[int | None, int] = {}
    for replica, policy, digest, key, count in found:
        counts[replica] = counts.get(replica, 0) + count
        last[replica] = max(last.get(replica, (-1, 0, None)), (key, policy, digest), key=lambda each: each[0])
    seen = [
        Seen(
            named.get(replica, "") if replica else "",
            named[policy],
            named.get(digest) if digest else None,
            time_of(key),
            counts[replica],
        )
        for replica, (key, policy, digest) in last.items()
    ]
    return sorted(seen, key=lambda each: each.replica)
