"""What the operator sets in the environment.

Each setting is checked before the model loads, and once more where it is used. In a file of its own: who starts the
server asks for them, too, and must not import prometheus-client before vLLM has set it up.
"""

import math
import os
from pathlib import Path

from probes.errors import ServingError

READY_AGE = "FOREGUARD_READY_AGE"
"""Environment variable: how long ago the last prompt may have been scored, in seconds."""
MAX_BODY = "FOREGUARD_MAX_BODY"
"""Environment variable: the longest body of a request, in bytes."""
BODY_TIMEOUT = "FOREGUARD_BODY_TIMEOUT"
"""Environment variable: how long a body may take to come, from its first byte to its last, in seconds."""
METRICS_KEY = "FOREGUARD_METRICS_KEY"
"""Environment variable: the bearer key of whoever may read scores and thresholds on `/metrics`."""
STATE = "FOREGUARD_STATE"
"""Environment variable: the folder in which the server's processes say what they go by, and its history is kept."""
ADMIN_TOKENS = "FOREGUARD_ADMIN_TOKENS"
"""Environment variable: the bearer tokens of operators, `NAME=TOKEN` with commas between several."""

_READY_AGE_S = 30.0
# Anthropic's API takes 32 MB a request and OpenAI's 50 MB of images; a million tokens of text are about 5 MB.
_MAX_BODY = 64 << 20
# What a client on a line of 10 Mbit/s needs for the longest body.
_BODY_TIMEOUT_S = 60.0
_SHORTEST_KEY = 16


def require_settings() -> None:
    """Raise `ServingError` for the first setting that is not what it should be."""
    for setting in (ready_age, max_body, body_timeout, metrics_key):
        setting()


def ready_age() -> float:
    """Return how long ago the last prompt may have been scored, in seconds.

    Raises `ServingError` for what is no time.
    """
    return _positive(READY_AGE, _READY_AGE_S, "time", "give seconds, for example 30")


def max_body() -> int:
    """Return the longest body of a request, in bytes. Raises `ServingError` for what is no size."""
    size = _positive(MAX_BODY, _MAX_BODY, "size", f"give bytes, for example {_MAX_BODY}")
    return math.ceil(size)


def body_timeout() -> float:
    """Return how long a body may take to come, in seconds. Raises `ServingError` for what is no time."""
    return _positive(BODY_TIMEOUT, _BODY_TIMEOUT_S, "time", "give seconds, for example 60")


def metrics_key() -> str | None:
    """Return the key for all metrics, or None where nobody has one. Raises `ServingError` for a weak key."""
    key = os.environ.get(METRICS_KEY) or None
    if key is None:
        return None
    # Its value stays out of the message, which goes to a log.
    if len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise ServingError(
            f"is no key: it must have {_SHORTEST_KEY} printable ASCII characters or more, and no space",
            field=METRICS_KEY,
            remedy="make one with `openssl rand -hex 32`",
        )
    return key


def state_folder() -> Path | None:
    """Return the folder for the server's state, or None where none is kept."""
    folder = os.environ.get(STATE)
    return Path(folder) if folder else None


def _positive(variable: str, default: float, kind: str, remedy: str) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ServingError(f"is {text!r}, which is no {kind}", field=variable, remedy=remedy)
    return number
