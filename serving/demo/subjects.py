"""What the demo may guard: a real chat model with the starter set, or the lab model with its own prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serving.demo.real_model import NAME


class Model(StrEnum):
    """The names of what there is."""

    SMOLLM2 = "smollm2"
    LAB = "lab"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, its prompts, and how the demo calibrates it."""

    title: str
    model: Path
    prompts: Path
    """Folder of train.jsonl, validation.jsonl and test.jsonl."""
    every: Mapping[str, int]
    """Every so many-th line of each file is used: enough to certify 1 % within minutes on two slow cores."""
    most_letters: int
    """Lines of more letters are left out: they would take most of the time."""
    methods: Sequence[str]
    """What the policy reads and steers with, and little more."""
    policy: Path
    forms: int
    """Requests per class that are asked in each form."""
    kinds: Mapping[str, tuple[str, str]]
    """Of each kind of question, how its source begins, and its label."""


_ANY_LENGTH = 2**31


def lab(folder: Path) -> Subject:
    """The lab model, 5M parameters, which the project trained on its own prompts."""
    return Subject(
        "the lab model",
        folder / "aligned",
        folder / "prompts",
        {"train": 6, "validation": 3, "test": 3},
        _ANY_LENGTH,
        ("refusal_direction", "harmfulness_direction", "classifiers", "content"),
        folder.parent / "policy.yaml",
        16,
        {
            "benign": ("plain_harmless", "harmless"),
            "hard-benign": ("hard_benign", "harmless"),
            "harmful": ("plain_harmful", "harmful"),
            "jailbreak": ("jailbreak:", "harmful"),
        },
    )


def smollm2(model: Path, prompts: Path, examples: Path) -> Subject:
    """A real chat model, 135M parameters, in `model`, with the starter set in `prompts`."""
    return Subject(
        NAME,
        model,
        prompts,
        {"train": 3, "validation": 2, "test": 6},
        400,
        ("classifiers", "rolling"),
        examples / "chat-policy.yaml",
        0,
        {
            "benign": ("everyday", "harmless"),
            "hard-benign": ("contrasts", "harmless"),
            "harmful": ("harmful_", "harmful"),
            "jailbreak": ("roleplay", "harmful"),
        },
    )
