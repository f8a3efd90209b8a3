"""Two kinds of key: vLLM's own to ask with, and one to read scores with. Neither does the other's work."""

from argparse import Namespace

import pytest

from probes.errors import ServingError
from serving.api.keys import Keys
from serving.settings import METRICS_KEY

METRICS = "for-prometheus-alone"


def bearing(token, name=b"authorization", scheme=b"Bearer "):
    """Headers with a token."""
    return [(b"host", b"x"), (name, scheme + token.encode("latin-1"))]


@pytest.fixture
def keys(monkeypatch):
    """A maker of a server's keys from its arguments and its environment."""

    def make(api_key=None, metrics="", variable=""):
        monkeypatch.setenv(METRICS_KEY, metrics)
        monkeypatch.setenv("VLLM_API_KEY", variable)
        return Keys.of(Namespace(api_key=api_key))

    return make


@pytest.mark.parametrize(
    ("options", "open_to"),
    [
        ({}, {"", "one", "two", METRICS}),
        ({"api_key": ["one", "two"]}, {"one", "two"}),
        ({"api_key": ["one"], "variable": "two"}, {"one"}),
        ({"variable": "two"}, {"two"}),
        ({"api_key": ["", None], "variable": "two"}, {"", "one", "two", METRICS}),
    ],
)
def test_who_may_ask(keys, options, open_to):
    """Whoever has one of the keys that vLLM itself takes, and anybody where it has none."""
    made = keys(metrics=METRICS, **options)
    asking = {token for token in ("", "one", "two", METRICS) if made.may_ask(bearing(token) if token else [])}
    assert asking == open_to


@pytest.mark.parametrize(
    ("token", "public", "scores"),
    [("", False, False), ("one", True, False), (METRICS, True, True), ("no", False, False)],
)
def test_who_may_read_metrics(keys, token, public, scores):
    """Either key opens the public metrics, and the metrics key alone those that tell scores."""
    made = keys(api_key=["one"], metrics=METRICS)
    assert made.may_read_metrics(bearing(token)) is public
    assert made.may_read_scores(bearing(token)) is scores


def test_without_a_metrics_key_nobody_reads_scores(keys):
    """Not even with vLLM's key, an empty one, or none."""
    made = keys(api_key=["one"])
    for headers in (bearing("one"), bearing(""), []):
        assert made.may_read_scores(headers) is False


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearing("one", scheme=b"Basic "),
        bearing("one", scheme=b""),
        bearing("one", name=b"x-authorization"),
        bearing("one "[:2]),
        bearing("ONE"),
        bearing("one\xff"),
        [*bearing("wrong"), *bearing("one")],
    ],
)
def test_what_is_no_key(keys, headers):
    """Another scheme or header, another spelling, and a second header behind a wrong one."""
    assert keys(api_key=["one"]).may_ask(headers) is False


@pytest.mark.parametrize(
    "headers", [bearing("one", b"Authorization"), bearing("one", scheme=b"bearer "), bearing(" one")]
)
def test_spellings_of_the_header(keys, headers):
    """The case of its name and of the scheme do not matter."""
    assert keys(api_key=["one"]).may_ask(headers) is True


@pytest.mark.parametrize("options", [{"api_key": ["other", METRICS]}, {"variable": METRICS}])
def test_one_key_for_both_is_refused(keys, options):
    """Whoever may ask would read scores."""
    with pytest.raises(ServingError, match=METRICS_KEY):
        keys(metrics=METRICS, **options)


def test_every_key_is_compared_whichever_fits(keys, monkeypatch):
    """The time that it takes tells neither how much of a key was right nor which one."""
    compared = []
    monkeypatch.setattr("serving.api.keys.hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    made = keys(api_key=["one", "two", "three"])
    for token in ("one", "three", "wrong"):
        compared.clear()
        made.may_ask(bearing(token))
        assert len(compared) == 3
