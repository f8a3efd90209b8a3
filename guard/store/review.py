"""What people look at next, and what comes of it: decisions near a threshold, and decisions that have a label."""

import numpy as np
from sqlalchemy import Engine, func, select

from guard.store.filters import Filters
from guard.store.label import Label
from guard.store.reader import ALL, Reader, Record
from guard.store.schema import decisions, labels
from guard.store.scores import scores


def borderline(
    engine: Engine, probe: str, threshold: float, n: int, filters: Filters = ALL, *, among: int = 100_000
) -> list[Record]:
    """Return the `n` decisions whose scores are nearest to a threshold and that have no label, the nearest first.

    They are looked for among the last `among` decisions that have a score of this probe and fit the filters. One
    without a number for a score is left out. Raises `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    found = scores(engine, probe, among, filters)
    distance = np.abs(found.scores - threshold)
    wanted = np.isfinite(distance) & ~np.isin(found.keys, _labelled_keys(engine))
    keys, distance = found.keys[wanted], distance[wanted]
    return Reader(engine).at(keys[np.argsort(distance, kind="stable")[:n]].tolist())


def labelled(engine: Engine, n: int = 100_000, filters: Filters = ALL) -> list[Record]:
    """Return the last `n` decisions that have a label, the newest first: what precision and recall are counted from.

    Each has its scores, and the probability with which it was picked, if that is known. Raises
    `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    keys = _labelled_keys(engine, filters)
    return Reader(engine).at(np.sort(keys)[::-1][:n].tolist())


def _labelled_keys(engine: Engine, filters: Filters = ALL) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the keys `[N]` of decisions whose last label was not taken back, in no order."""
    last = select(func.max(labels.c.id)).group_by(labels.c.event_id)
    given = select(labels.c.event_id).where(labels.c.id.in_(last), labels.c.label != Label.WITHDRAWN.value)
    wanted = select(decisions.c.key).where(decisions.c.event_id.in_(given), *filters.clauses())
    with engine.connect() as connection:
        return np.fromiter(connection.execute(wanted).scalars(), dtype=np.int64)
