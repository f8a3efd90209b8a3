"""What the demo asks: the first prompts of each kind in the lab's test split, none of them picked by hand."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

PER_KIND = 6

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
    row: dict[str, Any]
    """The prompt as it stands in the prompt file."""
    stream: bool

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation to send."""
        messages: list[dict[str, str]] = self.row.get("messages") or [{"role": "user", "content": self.row["prompt"]}]
        return messages

    @property
    def is_harmful(self) -> bool:
        """What the prompt file says of it."""
        return bool(self.row["label"] == "harmful")


def questions(prompts: Path) -> Iterator[Question]:
    """Yield the first `PER_KIND` prompts of each kind, every second one to be streamed."""
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for kind, (source, label) in _KINDS.items():
        matching = (row for row in rows if row["source"].startswith(source) and row["label"] == label)
        for index, row in enumerate(islice(matching, PER_KIND)):
            yield Question(kind, row, stream=index % 2 == 1)
