"""The key of a row: when the decision was made, and a number that tells decisions of one microsecond apart.

Keys put decisions in the order of time. A page, a stretch of time and what is too old are each one range of keys, so
the table needs no other index for them. Keys reach to the year 2112.
"""

import zlib
from datetime import UTC, datetime, timedelta

TIES = 2048
"""Keys for each microsecond."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def row_key(at: datetime, event_id: str) -> int:
    """Return the key of a decision. The same decision has the same key whenever it is asked for."""
    return first_key(at) + zlib.crc32(event_id.encode()) % TIES


def first_key(at: datetime) -> int:
    """Return the smallest key of a moment. A time without a zone is local time."""
    return microseconds(at) * TIES


def time_of(key: int) -> datetime:
    """Return when the decision with that key was made, in UTC."""
    return _EPOCH + timedelta(microseconds=key // TIES)


def microseconds(at: datetime) -> int:
    """Return Unix time in microseconds."""
    return (at.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
