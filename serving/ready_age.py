"""How long ago the last prompt may have been scored, as the operator has set it.

In a file of its own: who starts the server asks for it, too, and must not import prometheus-client before vLLM has set it up.
"""

import math
import os

from probes.errors import ServingError

VARIABLE = "FOREGUARD_READY_AGE"
"""Environment variable with the seconds."""
DEFAULT_S = 30.0


def max_age() -> float:
    """Return how long ago the last prompt may have been scored, in seconds. Raises `ServingError` for what is no time."""
    text = os.environ.get(VARIABLE) or str(DEFAULT_S)
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not (math.isfinite(age) and age > 0):
        raise ServingError(f"is {text!r}, which is no time", field=VARIABLE, remedy="give seconds, for example 30")
    return age
