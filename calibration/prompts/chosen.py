"""Which prompts a calibration uses: the starter set, one file that is divided, or three."""

from collections.abc import Sequence
from pathlib import Path

from calibration.prompts.progress import stage
from calibration.prompts.prompt_file import PromptFile, load_prompts, read_labels
from calibration.prompts.splits import SPLITS, divide, read_splits
from calibration.prompts.starter_set import starter_set
from probes.errors import PromptError


def chosen_prompts(
    prompts: Path | None = None,
    train: Path | None = None,
    validation: Path | None = None,
    test: Path | None = None,
    spellings: Sequence[str] = (),
) -> dict[str, PromptFile]:
    """Return the prompts of each split: of three files, of one that is divided, or of the starter set if none is named.

    `spellings` are those of a file's own labels (`read_labels`).

    Raises `PromptError` where one file stands beside three, or one of the three is missing.
    """
    three = dict(zip(SPLITS, (train, validation, test), strict=True))
    missing = [name for name, path in three.items() if path is None]
    if prompts is not None and len(missing) < len(SPLITS):
        raise PromptError(
            "stands beside files for single splits",
            field="--prompts",
            remedy="give one file that is divided here, or --train, --validation and --test",
        )
    if 0 < len(missing) < len(SPLITS):
        raise PromptError(
            "is missing, and the other splits have files",
            field=f"--{missing[0]}",
            remedy="give all of --train, --validation and --test, or one file by --prompts",
        )
    labels = read_labels(spellings)
    with stage("reading the prompts"):
        if train is not None and validation is not None and test is not None:
            return read_splits(train, validation, test, labels)
        return divide(starter_set() if prompts is None else load_prompts(prompts, labels))
