"""Train, validation and test prompts: three files, or one that is divided here."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibration.prompts.near_duplicates import near_duplicates
from calibration.prompts.prompt_file import (
    LABELS,
    MINIMUM_PER_CLASS,
    Labels,
    Prompt,
    PromptFile,
    load_prompts,
    require_classes,
    require_disjoint,
)

SPLITS = ("train", "validation", "test")
MINIMA: Mapping[str, int] = {"train": MINIMUM_PER_CLASS, "validation": MINIMUM_PER_CLASS, "test": 1}
"""Fewest prompts of each class that a split may have."""
_SHARES = (0.5, 0.3, 0.2)


def read_splits(train: Path, validation: Path, test: Path, labels: Labels = LABELS) -> dict[str, PromptFile]:
    """Read three prompt files. Raises `PromptError`, also where a request stands in two of them."""
    found = (load_prompts(path, labels) for path in (train, validation, test))
    files = dict(zip(SPLITS, found, strict=True))
    _require_minima(files)
    require_disjoint(list(files.values()))
    return files


def divide(file: PromptFile) -> dict[str, PromptFile]:
    """Divide `file` into half to fit on, three tenths to certify thresholds by and two tenths to report on.

    Every label, source and category is divided so. A request and its near-copies stay together. The same prompts are
    always divided in the same way. Raises `PromptError` where a class is left with too few prompts.
    """
    splits = _dealt(file.prompts)
    # A copy joins the earlier split, and so gets nearer to the first: this ends.
    while copies := near_duplicates([_part(file, splits, index) for index in range(len(SPLITS))]):
        for copy in copies:
            splits[copy.second[1]] = copy.first[0]
    files = {name: _part(file, splits, index) for index, name in enumerate(SPLITS)}
    _require_minima(files)
    return files


def _dealt(prompts: Sequence[Prompt]) -> dict[int, int]:
    """Return the split of each prompt by its line: of a label, source and category, each split gets its share."""
    dealt = [0] * len(SPLITS)
    splits = {}
    for number, prompt in enumerate(sorted(prompts, key=_order), start=1):
        behind = [share * number - count for share, count in zip(_SHARES, dealt, strict=True)]
        splits[prompt.line] = split = behind.index(max(behind))
        dealt[split] += 1
    return splits


def _order(prompt: Prompt) -> tuple[bool, str, str, str]:
    """Order prompts by label, source and category, and within these by chance, which their text decides."""
    chance = hashlib.sha256(prompt.text.encode(errors="surrogatepass")).hexdigest()
    return prompt.is_harmful, prompt.source or "", prompt.category or "", chance


def _part(file: PromptFile, splits: Mapping[int, int], index: int) -> PromptFile:
    prompts = tuple(prompt for prompt in file.prompts if splits[prompt.line] == index)
    name = f"{file.name} ({SPLITS[index]})"
    return PromptFile(name, hashlib.sha256(f"{file.sha256} {index} {_SHARES}".encode()).hexdigest(), prompts)


def _require_minima(files: Mapping[str, PromptFile]) -> None:
    for split, file in files.items():
        require_classes(file.harmful, file.name, MINIMA[split])
