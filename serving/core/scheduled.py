"""Which requests of a step the guard has something on, without a look at all that wait."""

from collections.abc import Mapping
from typing import Any


def scheduled_of(held: Mapping[str, Any], scheduled: Mapping[str, Any]) -> list[str]:
    """Return the requests that are in both, in the order of the shorter one: that one alone is gone through.

    A queue may hold 50,000 requests, and a step a few hundred.
    """
    shorter, longer = (held, scheduled) if len(held) < len(scheduled) else (scheduled, held)
    return [name for name in shorter if name in longer]
