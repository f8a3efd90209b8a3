"""An operator's prompts, scored and in groups: the benign that certify, the harmful and the hard benign that
measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.evaluation.evaluation_run import Loaded
from calibration.prompts.prompt_file import PromptFile, load_prompts
from calibration.prompts.template import EncodedPrompts
from calibration.tuning.strata import strata_of
from calibration.tuning.tune import Sample
from guard.bound_rule import Columns
from guard.decide import score_columns
from guard.policy import Policy
from probes.artifact import HARMFUL_SCORES
from probes.errors import PromptError


@dataclass(frozen=True, slots=True)
class TunePrompts:
    """Scores of an operator's prompts, by what they are for."""

    benign: Sample
    """They certify."""
    harmful: Columns
    """On them recall is measured."""
    hard: Columns | None
    """Harmless, though they sound harmful: on them over-refusal is measured."""
    notes: tuple[str, ...] = ()
    """Prompts that were given and have no part, in words."""

    def named(self) -> dict[str, Columns]:
        """Return the scores of each group, by its name."""
        hard = {} if self.hard is None else {"hard benign": self.hard}
        return {"benign": self.benign.columns, "harmful": self.harmful} | hard


def score_groups(
    loaded: Loaded,
    policy: Policy,
    file: PromptFile,
    harmful: PromptFile | None,
    strata: Sequence[str],
    hard_benign: Sequence[str],
) -> tuple[TunePrompts, EncodedPrompts]:
    """Return the scores of `file` in groups, with its prompts as they were read.

    Harmful are those of `harmful`, of `file`, or the artifact's own, whichever there are first. `hard_benign` names
    files, or sources and categories of `file`, whose prompts stay part of the benign sample. Raises `PromptError`.
    """
    prompts = loaded.encode(file)
    benign = ~prompts.harmful
    if not benign.any():
        raise PromptError(
            "holds no harmless prompts", field=file.name, remedy='give your own traffic with "label": "harmless"'
        )
    names = [probe.name for probe in loaded.artifact.manifest.probes]
    scored = loaded.score(prompts, "scoring your prompts")
    harmful_scores, notes = scored[prompts.harmful], list[str]()
    if harmful is not None:
        notes += _unused(len(harmful_scores), "harmful", file, "recall is measured on those of --harmful")
        harmful_scores = _side(loaded, harmful, notes, is_harmful=True)
    elif not len(harmful_scores):
        harmful_scores = loaded.artifact.tensors[HARMFUL_SCORES].numpy()
    hard = [_hard(loaded, prompts, scored, each, notes) for each in hard_benign]
    sample = Sample(score_columns(policy, names, scored[benign]), strata_of(prompts, strata)[benign])
    return (
        TunePrompts(
            sample,
            score_columns(policy, names, harmful_scores),
            score_columns(policy, names, np.concatenate(hard)) if hard else None,
            tuple(notes),
        ),
        prompts,
    )


def _side(loaded: Loaded, file: PromptFile, notes: list[str], *, is_harmful: bool) -> npt.NDArray[np.float32]:
    """Return the scores of a file's prompts of one label; add to `notes` which of its prompts have no part."""
    prompts = loaded.encode(file)
    label, other = ("harmful", "harmless") if is_harmful else ("harmless", "harmful")
    rows = prompts.harmful == is_harmful
    if not rows.any():
        raise PromptError(f"holds no {label} prompts", field=file.name, remedy=f'give prompts with "label": "{label}"')
    notes += _unused(int((~rows).sum()), other, file, f"only its {label} ones were asked for")
    if prompts.num_skipped:
        notes.append(f"{prompts.num_skipped} prompts of {file.name} were longer than the model's context and left out")
    return np.asarray(loaded.score(prompts, f"scoring {label} prompts")[rows])


def hard_benign_files(names: Sequence[str]) -> list[PromptFile]:
    """Return those of the hard benign prompts that stand in files of their own. Raises `PromptError`."""
    return [load_prompts(path) for path in map(Path, names) if path.is_file()]


def _unused(count: int, label: str, file: PromptFile, reason: str) -> list[str]:
    return [f"{count} {label} prompts of {file.name} are not used: {reason}"] if count else []


def _hard(
    loaded: Loaded, prompts: EncodedPrompts, scored: npt.NDArray[np.float32], name: str, notes: list[str]
) -> npt.NDArray[np.float32]:
    """Return the scores of hard benign prompts: a file of their own, or a source or category of the operator's."""
    if Path(name).is_file():
        return _side(loaded, load_prompts(Path(name)), notes, is_harmful=False)
    benign = [(row, prompt) for row, prompt in enumerate(prompts.prompts) if not prompt.is_harmful]
    rows = [row for row, prompt in benign if name in (prompt.source, prompt.category)]
    if not rows:
        known = sorted({each for _, prompt in benign for each in (prompt.source, prompt.category) if each})
        raise PromptError(
            f"no file, and no source or category of harmless prompts, is named {name!r}",
            field="--hard-benign",
            remedy=f"name a prompt file, or one of: {', '.join(known) or 'none is stated in the prompts'}",
        )
    return np.asarray(scored[rows])
