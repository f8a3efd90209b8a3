"""What the operator sets in the environment is used as it is, or refused by its name before the model loads."""

import pytest

from probes.errors import ServingError
from serving.settings import (
    BODY_TIMEOUT,
    MAX_BODY,
    METRICS_KEY,
    READY_AGE,
    body_timeout,
    max_body,
    metrics_key,
    ready_age,
    require_settings,
)

NO_NUMBERS = ["0", "-1", "nan", "inf", "soon", "1e999", "64MiB"]
NO_KEYS = ["short", "x" * 15, "has a space in it", "tab\tin it, it has one", "clé-d-accès-très-longue", "x" * 16 + "\n"]


@pytest.mark.parametrize(
    ("setting", "text"),
    [*((name, text) for name in (READY_AGE, MAX_BODY, BODY_TIMEOUT) for text in NO_NUMBERS)]
    + [(METRICS_KEY, text) for text in NO_KEYS],
)
def test_what_is_none_is_refused(monkeypatch, setting, text):
    """The error names the variable and a remedy; it repeats no key, as it goes to a log."""
    monkeypatch.setenv(setting, text)
    with pytest.raises(ServingError) as caught:
        require_settings()
    assert caught.value.field == setting
    assert caught.value.remedy
    assert setting != METRICS_KEY or text not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "read", "text", "expected"),
    [
        (READY_AGE, ready_age, "", 30.0),
        (READY_AGE, ready_age, "5", 5.0),
        (MAX_BODY, max_body, "", 64 << 20),
        (MAX_BODY, max_body, "1000", 1000),
        (BODY_TIMEOUT, body_timeout, "", 60.0),
        (BODY_TIMEOUT, body_timeout, "0.5", 0.5),
        (METRICS_KEY, metrics_key, "", None),
        (METRICS_KEY, metrics_key, "x" * 16, "x" * 16),
    ],
)
def test_the_operator_s_value_or_the_default(monkeypatch, setting, read, text, expected):
    """An empty variable is one that is not set."""
    monkeypatch.setenv(setting, text)
    assert read() == expected
    require_settings()
