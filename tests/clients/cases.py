"""Tables of cases as pytest's parameters, and what was seen in the terms of what is expected."""

from collections.abc import Callable, Iterable

import pytest

from tests.clients.client import Seen
from tests.clients.outcomes import CLIENTS, Facts, Outcomes

PATHS = {
    "chat": "/v1/chat/completions",
    "compatible": "/v1/chat/completions",
    "completion": "/v1/completions",
    "response": "/v1/responses",
    "message": "/v1/messages",
}


def api(case: str) -> str:
    """Return the API that a case asks."""
    return case.split("_")[0]


def each(select: Callable[[Outcomes], Iterable[tuple]], *names: str) -> pytest.MarkDecorator:
    """Parametrize a test with a client's script and what `select` gives of that client: tuples of `names`."""
    rows = [
        pytest.param(client.script, *row, id=f"{client.script.split('.')[0]}-{row[0]}")
        for client in CLIENTS
        for row in select(client)
    ]
    return pytest.mark.parametrize(("script", *names), rows)


def facts(seen: Seen, expected: Facts) -> Facts:
    """Return what was seen in the terms of `expected`: of an error's text, what is looked for if it is there once."""
    found = {name: getattr(seen, name) for name in ("text", "finish", "refusal", "error") if getattr(seen, name)}
    said = expected.get("said")
    return found | ({"said": said} if said is not None and seen.said.count(said) == 1 else {})
