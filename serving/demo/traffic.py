"""Made-up traffic: an hour of requests from several tenants, with an attack towards its end."""

import hashlib
import json
import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.demo.subjects import Subject

MINUTES = 60
_PER_MINUTE = 10
_ATTACK = range(48, 56)
"""Minutes in which one tenant sends harmful requests again and again."""
_ATTACKED, _ATTACKS_PER_MINUTE = "shop", 8
_TENANTS = ("shop", "school", "clinic")
_CALLERS = 200
"""Callers of no tenant, each with a token of its own: a canary of 5 % takes ten of them in."""
_OF_TENANTS = 0.5
"""Share of requests that come from a tenant."""
_HARD_BENIGN, _HARMFUL = 0.06, 0.03
"""Shares of all requests."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request."""

    minute: int
    """Of the hour."""
    token: str
    """The caller's bearer token."""
    messages: list[dict[str, Any]]
    is_harmful: bool


class Callers:
    """Whoever sends the traffic. Their tokens are new for each run."""

    def __init__(self) -> None:
        self.tenants: Mapping[str, str] = {name: secrets.token_urlsafe(16) for name in _TENANTS}
        """Tokens by the tenant's name."""
        self.others: Sequence[str] = [secrets.token_urlsafe(16) for _ in range(_CALLERS)]
        """Tokens of callers of no tenant."""

    def as_policy(self) -> list[dict[str, Any]]:
        """Return the policy file's key `tenants`."""
        digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in self.tenants.items()}
        return [{"name": name, "keys_sha256": [digest]} for name, digest in digests.items()]


def hour(subject: Subject, callers: Callers, seed: int = 0) -> Iterator[Sent]:
    """Yield an hour's requests in order, the same ones for each `seed` but for the tokens."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    kinds = _prompts(subject)
    for minute in range(MINUTES):
        for _ in range(_PER_MINUTE):
            drawn = chance.random()
            kind = "harmful" if drawn < _HARMFUL else "hard" if drawn < _HARMFUL + _HARD_BENIGN else "plain"
            yield Sent(minute, _caller(callers, chance), chance.choice(kinds[kind]), kind == "harmful")
        for _ in range(_ATTACKS_PER_MINUTE if minute in _ATTACK else 0):
            yield Sent(minute, callers.tenants[_ATTACKED], chance.choice(kinds["harmful"]), is_harmful=True)


def _caller(callers: Callers, chance: random.Random) -> str:
    return chance.choice(list(callers.tenants.values()) if chance.random() < _OF_TENANTS else callers.others)


def _prompts(subject: Subject) -> dict[str, list[list[dict[str, Any]]]]:
    """Return the test prompts that are not too long, by kind: none of them was calibrated on."""
    hard = subject.kinds["hard-benign"][0]
    found: dict[str, list[list[dict[str, Any]]]] = {"harmful": [], "hard": [], "plain": []}
    for line in (subject.prompts / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        if len(line) <= _LONGEST:
            is_hard = row["source"].startswith(hard)
            found["harmful" if row["label"] == "harmful" else "hard" if is_hard else "plain"].append(messages)
    return found


_LONGEST = 600
"""Letters of a prompt's line: longer prompts would only take time."""
