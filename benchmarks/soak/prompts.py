"""What the soak asks: the lab's own prompts, harmless and harmful, and long ones made of several."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

HARMFUL_SHARE = 0.15
LONG_CHARACTERS = 2400
"""Some 600 tokens of the lab model, whose context is 1,024 here."""
TOO_LONG_CHARACTERS = 24_000


@dataclass(frozen=True, slots=True)
class Prompts:
    """Where prompts are drawn from."""

    harmless: list[str]
    harmful: list[str]

    @classmethod
    def load(cls, path: Path) -> "Prompts":
        """Read a file of the lab's; its conversations of several turns are left out."""
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        texts = [(row["label"], row["prompt"]) for row in rows if "prompt" in row]
        return cls(
            [text for label, text in texts if label == "harmless"],
            [text for label, text in texts if label == "harmful"],
        )

    def one(self, chance: random.Random) -> str:
        """Return a prompt, harmful in `HARMFUL_SHARE` of the cases."""
        return chance.choice(self.harmful if chance.random() < HARMFUL_SHARE else self.harmless)

    def long(self, chance: random.Random, characters: int = LONG_CHARACTERS) -> str:
        """Return a prompt of `characters`, made of harmless ones."""
        text = chance.choice(self.harmless)
        while len(text) < characters:
            text += " " + chance.choice(self.harmless)
        return text[:characters]
