"""Tuning with a model: an operator's prompts are scored, and a policy's thresholds set on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.evaluation.evaluation_run import load_for
from calibration.prompts.prompt_file import PromptFile, require_one_label
from calibration.prompts.template import EncodedPrompts
from calibration.recording.engine_source import IN_PROCESS, engine_folder, require_engine
from calibration.tuning.joint import Joint, Prompts, find_setting
from calibration.tuning.limits import Limit, parse_limits
from calibration.tuning.outcome import GroupOutcome, outcomes
from calibration.tuning.policy_edit import comments_of, policy_diff
from calibration.tuning.prompts import TunePrompts, hard_benign_files, score_groups
from calibration.tuning.tune import (
    Plan,
    Sample,
    Tuned,
    band_plan,
    certify_bands,
    stated_plan,
    tune_bands,
    tune_scores,
    with_numbers,
)
from guard.binding import bind_to
from guard.decide import BoundPolicy, score_columns
from guard.policy import Policy
from guard.policy_file import parse_policy
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import CalibrationError, PolicyError, PromptError
from probes.manifest import Platt


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asks of a tuning."""

    target_fpr: float = 0.01
    """For conditions that hold a number; those that state a rate keep to it."""
    block_fpr: float | None = None
    flag_fpr: float | None = None
    """With `block_fpr`, a band: blocks are certified at the one, flags and steers at the other, whatever is stated."""
    at_most: tuple[str, ...] = ()
    """Limits on the whole policy at once, such as `miss=0.2`."""
    confidence: float = 0.95
    strata: tuple[str, ...] = ()
    """Kinds of `calibration.tuning.strata` in which every promise has to hold."""
    hard_benign: tuple[str, ...] = ()
    """Sources or categories among the prompts, or files: harmless requests that sound harmful."""
    prevalence: float | None = None
    """Share of the traffic that is harmful, for probabilities."""

    def __post_init__(self) -> None:
        if (self.block_fpr is None) != (self.flag_fpr is None):
            raise CalibrationError(
                "a band has two ends", field="--block-fpr", remedy="give both --block-fpr and --flag-fpr"
            )
        if self.at_most and self.block_fpr is not None:
            raise CalibrationError(
                "limits and a band both say where thresholds go",
                field="--at-most",
                remedy="give the band as limits: --at-most block=… --at-most flag=…",
            )


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuned policy, and all that a person needs to judge it."""

    diff: str
    scores: tuple[Tuned, ...]
    """Each score's certified cuts; empty where limits on the whole policy were asked for."""
    joint: Joint | None
    before: Mapping[str, GroupOutcome]
    """What the policy does now, by group of prompts; empty where the artifact cannot certify its promises."""
    after: Mapping[str, GroupOutcome]
    platt: Mapping[str, Platt]
    """Maps to probabilities at the prevalence that was asked for; empty where none was."""
    notes: tuple[str, ...]


def tune_policy(
    model: Path,
    artifact: Artifact,
    policy: Path,
    file: PromptFile,
    *,
    harmful: PromptFile | None = None,
    request: Request = Request(),
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
    text = _read_policy(policy)
    written = parse_policy(text, policy.name)
    parsed = written.with_combinations(artifact.manifest.combinations)
    limits = parse_limits(request.at_most)
    platt = _platt_at(artifact, request.prevalence)
    _require_usable(artifact, file, harmful, limits)
    require_one_label([each for each in (file, harmful) if each] + hard_benign_files(request.hard_benign))
    loaded = load_for(model, artifact, dtype, device, skip_long)
    names = [probe.name for probe in artifact.manifest.probes]
    with engine_folder() as folder:
        scoring = loaded.through(engine, engine_args, model=model, dtype=dtype, folder=folder)
        groups, prompts = score_groups(scoring, parsed, file, harmful, request.strata, request.hard_benign)

    def bound(tuned: Policy) -> BoundPolicy:
        return bind_to(artifact, tuned, pinned=False)

    scores: tuple[Tuned, ...] = ()
    joint = None
    if limits:
        reference = _reference(artifact, names, parsed)
        asked = Prompts(groups.benign, groups.harmful, groups.hard)
        joint = find_setting(parsed, limits, asked, reference, request.confidence, bound)
        plan: Plan = joint.plan
    elif request.block_fpr is not None and request.flag_fpr is not None:
        bands = certify_bands(parsed, groups.benign, request.block_fpr, request.flag_fpr, request.confidence)
        plan, scores = (
            band_plan(parsed, bands, groups.benign, request.confidence),
            tuple(tune_bands(bands, groups.harmful)),
        )
    else:
        scores = tuple(tune_scores(groups.benign, groups.harmful, request.target_fpr, request.confidence))
        plan = stated_plan(parsed, groups.benign, request.target_fpr, request.confidence)
    tuned = bound(with_numbers(parsed, {place: number.value for place, number in plan.items()}))
    after = outcomes(tuned, groups.named())
    before, note = _before(bound, parsed, groups)
    return Tuning(
        diff=policy_diff(text, policy.name, written, plan, comments_of(plan, after)),
        scores=scores,
        joint=joint,
        before=before,
        after=after,
        platt=platt,
        notes=(*note, *_notes(prompts, tuned), *groups.notes),
    )


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


def _reference(artifact: Artifact, names: Sequence[str], policy: Policy) -> Prompts:
    benign, harmful = (
        score_columns(policy, names, artifact.tensors[name].numpy()) for name in (BENIGN_SCORES, HARMFUL_SCORES)
    )
    return Prompts(Sample(benign), harmful)


def _before(
    bound: Callable[[Policy], BoundPolicy], policy: Policy, groups: TunePrompts
) -> tuple[Mapping[str, GroupOutcome], list[str]]:
    try:
        return outcomes(bound(policy), groups.named()), []
    except PolicyError as error:
        # Tuning is what mends this policy: that it cannot be served as it is must not stand in the way.
        return {}, [f"as it is, the policy cannot be served with this artifact: {error.field}: {error.problem}"]


def _notes(prompts: EncodedPrompts, tuned: BoundPolicy) -> list[str]:
    benign = [prompt.messages for prompt in prompts.prompts if not prompt.is_harmful]
    copies, notes = len(benign) - len(set(benign)), []
    if copies:
        notes.append(
            f"{copies} of {len(benign)} benign prompts are exact copies of others: promises count every prompt as a "
            "draw of its own, so keep copies only if your traffic repeats itself like that"
        )
    if prompts.num_skipped:
        notes.append(f"{prompts.num_skipped} prompts were longer than the model's context and left out")
    notes += [
        f"rule {idle} never decides: {before} fires wherever it would, and goes before it"
        for idle, before in tuned.idle_rules.items()
    ]
    return notes


def _platt_at(artifact: Artifact, prevalence: float | None) -> dict[str, Platt]:
    if prevalence is None:
        return {}
    return {probe.name: probe.platt.at(prevalence) for probe in artifact.manifest.probes if probe.platt is not None}


def _read_policy(path: Path) -> str:
    try:
        # Bytes, since reading as text would change the line ends that the diff has to match.
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"cannot read {path.name}: {error}", field="policy", remedy="name a readable YAML file"
        ) from error
