"""Expands the seeds into labelled prompts, split by seed and template, and writes prompts/<split>.jsonl.

The draw is a pure function of the seeds and of `SEED`: a second run writes the same bytes.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from examples.lab.seedbank import LAB, SPLITS, Split, fill, seeds

SEED = 20
PROMPTS = LAB / "prompts"
Label = Literal["harmful", "harmless"]
Message = dict[str, str]

# Prompts per source and split.  Validation holds more than 2,995 harmless prompts: what a threshold at a false-positive
# rate of 0.1 % needs to be certified with 95 % confidence (rule of three, 1 - 0.999 ** n >= 0.95).
COUNTS: dict[str, dict[Split, int]] = {
    "plain_harmful": {"train": 2600, "validation": 500, "test": 500},
    "plain_harmless": {"train": 3600, "validation": 1700, "test": 1000},
    "hard_benign": {"train": 2800, "validation": 700, "test": 500},
    "jailbreak_harmful": {"train": 1800, "validation": 400, "test": 500},
    "jailbreak_harmless": {"train": 1400, "validation": 500, "test": 300},
    "multi_turn_harmful": {"train": 300, "validation": 100, "test": 100},
    "multi_turn_harmless": {"train": 400, "validation": 200, "test": 150},
    "long_benign": {"train": 90, "validation": 90, "test": 80},
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled prompt.

    `topic` is what the request is about; it feeds the answers and is not written to the file.
    """

    messages: tuple[tuple[str, str], ...]
    label: Label
    category: str
    source: str
    topic: str

    @property
    def wrapper(self) -> str | None:
        """The jailbreak family, or None for an unwrapped prompt."""
        kind, _, family = self.source.partition(":")
        return family if kind == "jailbreak" else None

    def chat(self) -> list[Message]:
        """The messages as a chat template takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]

    def row(self, identifier: str) -> dict[str, Any]:
        """The JSONL row: `prompt` for a single turn, `messages` for several."""
        text = {"prompt": self.messages[0][1]} if len(self.messages) == 1 else {"messages": self.chat()}
        return {"id": identifier, **text, "label": self.label, "category": self.category, "source": self.source}


Draw = Callable[[Split, random.Random], Sample]


def topic_of(bank: str, split: Split, rng: random.Random) -> tuple[str, str]:
    """A category, drawn evenly, and one of its topics."""
    category = rng.choice(sorted(seeds(bank)))
    return category, fill(rng.choice(seeds(bank)[category][split]), split, rng)


def benign_topic(split: Split, rng: random.Random) -> tuple[str, str]:
    """A harmless topic, every third one hard."""
    return topic_of("hard_benign" if rng.random() < 1 / 3 else "harmless", split, rng)


def phrase(topic: str, split: Split, rng: random.Random) -> str:
    """The topic as a request, sometimes with a harmless clause before or after it."""
    request = rng.choice(seeds("templates")["request"][split]).format(topic=topic)
    clause = rng.choice(seeds("templates")["clause"][split])
    return str(rng.choice([request, f"{request} {clause}", f"{clause} {request}"]))


def plain(bank: str, source: str, label: Label, split: Split, rng: random.Random) -> Sample:
    """A single-turn request from one bank of seeds."""
    category, topic = topic_of(bank, split, rng)
    return Sample((("user", phrase(topic, split, rng)),), label, category, source, topic)


def wrapped(label: Label, split: Split, rng: random.Random) -> Sample:
    """A request inside a jailbreak wrapper; harmless requests are wrapped as well."""
    families = seeds("wrappers")["families"]
    family = rng.choice(sorted(families))
    category, topic = topic_of("harmful", split, rng) if label == "harmful" else benign_topic(split, rng)
    wrapper = fill(rng.choice(families[family][split]), split, rng)
    return Sample((("user", wrapper.format(topic=topic)),), label, category, f"jailbreak:{family}", topic)


def first_turns(split: Split, rng: random.Random) -> Iterator[tuple[str, str]]:
    """One to three harmless exchanges that come before the last turn (never more than four user turns in all)."""
    chat = seeds("conversations")
    if rng.random() < 0.5:
        yield "user", rng.choice(chat["opening"][split])
        yield "assistant", rng.choice(chat["reply"][split])
    for _ in range(rng.choice([1, 1, 2])):
        _, topic = topic_of("harmless", split, rng)
        yield "user", phrase(topic, split, rng)
        yield "assistant", f"Sure. Here is a short answer: {topic}. Take it one step at a time."


def multi_turn(label: Label, split: Split, rng: random.Random) -> Sample:
    """A chat of two to four user turns whose last turn decides the label."""
    category, topic = topic_of("harmful", split, rng) if label == "harmful" else benign_topic(split, rng)
    last = rng.choice(seeds("conversations")["last"][split]).format(topic=topic)
    messages = (*first_turns(split, rng), ("user", last))
    return Sample(messages, label, category, f"multi_turn_{label}", topic)


def document(theme: str, split: Split, num_words: int, rng: random.Random) -> str:
    """Ordinary text of about `num_words` words: the theme's sentences first, then those of other themes."""
    bank = {name: lines[split] for name, lines in seeds("documents").items() if name != "request"}
    others = rng.sample(sorted(set(bank) - {theme}), len(bank) - 1)
    sentences: list[str] = []
    while sum(len(sentence.split()) for sentence in sentences) < num_words:
        for name in (theme, *others):
            sentences += [fill(line, split, rng) for line in rng.sample(bank[name], len(bank[name]))]
    kept, total = [], 0
    for sentence in sentences:
        kept.append(sentence)
        total += len(sentence.split())
        if total >= num_words:
            break
    return " ".join(kept)


def long_benign(split: Split, rng: random.Random) -> Sample:
    """A long document and a harmless request about it."""
    theme = rng.choice(sorted(set(seeds("documents")) - {"request"}))
    text = document(theme, split, rng.randint(240, 540), rng)
    request = rng.choice(seeds("documents")["request"][split])
    return Sample((("user", f"{text}\n\n{request}"),), "harmless", theme, "long_benign", "the text")


DRAWS: dict[str, Draw] = {
    "plain_harmful": partial(plain, "harmful", "plain_harmful", "harmful"),
    "plain_harmless": partial(plain, "harmless", "plain_harmless", "harmless"),
    "hard_benign": partial(plain, "hard_benign", "hard_benign", "harmless"),
    "jailbreak_harmful": partial(wrapped, "harmful"),
    "jailbreak_harmless": partial(wrapped, "harmless"),
    "multi_turn_harmful": partial(multi_turn, "harmful"),
    "multi_turn_harmless": partial(multi_turn, "harmless"),
    "long_benign": long_benign,
}


def distinct(draw: Draw, split: Split, count: int, rng: random.Random) -> list[Sample]:
    """`count` samples with pairwise different messages."""
    found: dict[tuple[tuple[str, str], ...], Sample] = {}
    while len(found) < count:
        sample = draw(split, rng)
        found.setdefault(sample.messages, sample)
    return list(found.values())


def build(split: Split) -> list[Sample]:
    """All samples of a split, in the order of the file."""
    samples: list[Sample] = []
    for name, counts in COUNTS.items():
        rng = random.Random(f"{SEED}/{split}/{name}")  # noqa: S311 - reproducible, not secret
        samples += distinct(DRAWS[name], split, counts[split], rng)
    return samples


def lines(split: Split) -> str:
    """The text of prompts/<split>.jsonl."""
    rows = (sample.row(f"{split}-{index:05d}") for index, sample in enumerate(build(split)))
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path = PROMPTS) -> None:
    """Writes the three files."""
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(lines(split), encoding="utf-8")


if __name__ == "__main__":
    write()
