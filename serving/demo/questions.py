"""What the demo asks: the first prompts of each kind in the test split, none of them picked by hand."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from serving.demo.subjects import Subject

PER_KIND = 6


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


def questions(subject: Subject) -> Iterator[Question]:
    """Yield the first `PER_KIND` test prompts of each kind, every second one to be streamed."""
    lines = (subject.prompts / "test.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines if line]
    for kind, (source, label) in subject.kinds.items():
        matching = (row for row in rows if row["source"].startswith(source) and row["label"] == label)
        for index, row in enumerate(islice(matching, PER_KIND)):
            yield Question(kind, row, stream=index % 2 == 1)
