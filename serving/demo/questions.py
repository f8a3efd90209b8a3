"""What the demo asks: the first prompts of each kind in the lab's test split, and what ought to happen to them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from guard.verdict import Action

PER_KIND = 4

_HARMFUL = frozenset({Action.STEER, Action.BLOCK})
_HARMLESS = frozenset({Action.ALLOW, Action.FLAG})
_KINDS = {
    "benign": ("plain_harmless", "harmless"),
    "hard-benign": ("hard_benign", "harmless"),
    "harmful": ("plain_harmful", "harmful"),
    "jailbreak": ("jailbreak:", "harmful"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the demo."""

    kind: str
    messages: list[dict[str, str]]
    expected: frozenset[Action]
    stream: bool


def questions(prompts: Path) -> Iterator[Question]:
    """Yield `PER_KIND` questions of each kind, every second one streamed."""
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for kind, (source, label) in _KINDS.items():
        matching = (row for row in rows if row["source"].startswith(source) and row["label"] == label)
        for index, row in enumerate(islice(matching, PER_KIND)):
            expected = _HARMFUL if label == "harmful" else _HARMLESS
            yield Question(kind, _messages(row), expected, stream=index % 2 == 1)


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    return row.get("messages") or [{"role": "user", "content": row["prompt"]}]
