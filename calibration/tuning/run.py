"""Tuning with a model: an operator's prompts are scored, and a policy's thresholds set on them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.evaluation.evaluation_run import load_for
from calibration.prompts.prompt_file import PromptFile, require_one_label
from calibration.prompts.template import EncodedPrompts
from calibration.recording.engine_source import IN_PROCESS, engine_folder, require_engine
from calibration.tuning.limits import Limit, parse_limits
from calibration.tuning.prompts import hard_benign_files, score_groups
from calibration.tuning.settle import AS_STATED, PolicyText, Request, Tuning, settle
from probes.artifact import Artifact
from probes.errors import PromptError


def tune_policy(
    model: Path,
    artifact: Artifact,
    policy: Path,
    file: PromptFile,
    *,
    harmful: PromptFile | None = None,
    request: Request = AS_STATED,
    dtype: str = "auto",
    device: str = "cpu",
    skip_long: bool = False,
    engine: str = IN_PROCESS,
    engine_args: Sequence[str] = (),
) -> Tuning:
    """Set the thresholds of `policy` on the benign prompts of `file`; nothing is written.

    `engine` scores the prompts: this process, or one that is registered, with its own `engine_args`.
    Recall is measured on `harmful`, on the harmful prompts of `file`, or on the artifact's own, whichever there are
    first. Raises `PolicyError`, `PromptError`, `CalibrationError` (also `TooFewNegatives`), `ArtifactMismatch` or
    `ModelError`.
    """
    require_engine(engine, engine_args)
    read = PolicyText.read(policy, artifact)
    limits = parse_limits(request.at_most)
    _require_usable(artifact, file, harmful, limits)
    require_one_label([each for each in (file, harmful) if each] + hard_benign_files(request.hard_benign))
    loaded = load_for(model, artifact, dtype, device, skip_long)
    with engine_folder() as folder:
        scoring = loaded.through(engine, engine_args, model=model, dtype=dtype, folder=folder)
        groups, prompts = score_groups(scoring, read.parsed, file, harmful, request.strata, request.hard_benign)
    groups = replace(groups, notes=(*_notes(prompts), *groups.notes))
    return settle(artifact, read, groups, request, limits)


def _require_usable(artifact: Artifact, file: PromptFile, harmful: PromptFile | None, limits: Sequence[Limit]) -> None:
    """Raise unless the prompts are free to certify: probes were not fitted on them, nor settings laid out by them."""
    splits = {item.sha256: item.split for item in artifact.manifest.data}
    for each in (file, harmful):
        split = splits.get(each.sha256) if each else None
        if each and (split == "train" or (split == "validation" and limits)):
            raise PromptError(
                f"the artifact's {split} prompts cannot certify: they have shaped what is to be certified",
                field=each.name,
                remedy="give prompts that calibration has not seen, such as your own traffic",
            )
    own_harmful = harmful is not None or bool(file.harmful.any())
    missing = [limit.kind for limit in limits if limit.kind in {"miss", "unblocked"} and not own_harmful]
    if missing:
        raise PromptError(
            f"a limit on {missing[0]} needs harmful prompts that calibration has not seen",
            field="--at-most",
            remedy="give reference attacks with --harmful",
        )


def _notes(prompts: EncodedPrompts) -> list[str]:
    benign = [prompt.messages for prompt in prompts.prompts if not prompt.is_harmful]
    copies, notes = len(benign) - len(set(benign)), []
    if copies:
        notes.append(
            f"{copies} of {len(benign)} benign prompts are exact copies of others: promises count every prompt as a "
            "draw of its own, so keep copies only if your traffic repeats itself like that"
        )
    if prompts.num_skipped:
        notes.append(f"{prompts.num_skipped} prompts were longer than the model's context and left out")
    return notes
