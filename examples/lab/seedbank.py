"""Reads the hand-written seeds, and expands one seed into the text of one draw."""

import random
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

LAB = Path(__file__).parent
_CHOICE = re.compile(r"\[([^\]]*\|[^\]]*)\]")
_SLOT = re.compile(r"\{(person|place|name|thing)\}")


@cache
def seeds(name: str) -> dict[str, Any]:
    """The content of seeds/<name>.yaml."""
    content: dict[str, Any] = yaml.safe_load((LAB / "seeds" / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def alternatives(seed: str) -> list[str]:
    """Every reading of a seed: all combinations of its `[a|b]` groups, slots left open."""
    parts = _CHOICE.split(seed)
    options = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*options)]


def fill(seed: str, split: Split, rng: random.Random) -> str:
    """One draw: `[a|b]` and the slots {person}, {place}, {thing}, {name} filled from the split's own words."""
    chosen = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), seed)
    return _SLOT.sub(lambda match: rng.choice(seeds("slots")[match[1]][split]), chosen)
