"""Running a comparison: each side's model scores the prompts, and its policy judges them as a served request is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.audits.updates.flips import Decided, Update, compare
from calibration.evaluation.evaluation_run import load_for
from calibration.prompts.prompt_file import PromptFile
from calibration.recording.request_scores import score_turns
from guard.binding import bind_to
from guard.policy import Policy
from guard.verdict import Action
from probes.artifact import Artifact
from probes.pooling import Scores
from probes.scoring import ProbeBank


@dataclass(frozen=True, slots=True)
class Build:
    """What is served before an update, or after it."""

    model: Path
    artifact: Path
    policy: Policy


def compare_updates(
    before: Build, after: Build, file: PromptFile, *, stops: Action, dtype: str = "auto", device: str = "cpu"
) -> Update:
    """Decide the prompts of `file` by both builds, and compare.

    Raises `ArtifactMismatch`, `PolicyError`, `ModelError` or `PromptError`.
    """
    scored: dict[tuple[Path, Path], Sequence[Scores]] = {}
    decided = []
    for build, name in ((before, "before"), (after, "after")):
        artifact, key = Artifact.load(build.artifact), (build.model, build.artifact)
        bound = bind_to(artifact, build.policy, pinned=False)
        if key not in scored:
            scored[key] = _scores(build.model, artifact, file, dtype, device, f"scoring each turn, {name}")
        decided.append([Decided.of(bound.judge_turns(turns.tolist())) for turns in scored[key]])
    return compare(file.prompts, decided[0], decided[1], stops)


def _scores(model: Path, artifact: Artifact, file: PromptFile, dtype: str, device: str, title: str) -> Sequence[Scores]:
    """Return of each prompt the scores of its turns, `[turns, K]`."""
    loaded = load_for(model, artifact, dtype, device, skip_long=False)
    prompts = loaded.encode(file)
    return score_turns(loaded.chat, ProbeBank.from_artifact(artifact), prompts.token_ids, title=title)
