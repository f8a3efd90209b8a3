"""What every tuning comes to: scored prompts settle a policy's thresholds, and a diff says so."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibration.tuning.joint import Joint, Prompts, find_setting
from calibration.tuning.limits import Limit
from calibration.tuning.outcome import GroupOutcome, outcomes
from calibration.tuning.policy_edit import comments_of, policy_diff
from calibration.tuning.prompts import TunePrompts
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
from guard.tuning.what_if import WhatIf
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import CalibrationError, PolicyError
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
    """Kinds of `calibration.tuning.strata`, or of `calibration.tuning.labelled`, in which every promise has to hold."""
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


AS_STATED = Request()
"""What is asked for where nothing is said."""


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
    current: BoundPolicy | None
    """The policy as it is; None where the artifact cannot certify its promises."""
    tuned: BoundPolicy
    traffic: WhatIf | None = None
    """What the tuned policy would have done to recorded traffic, where it was tuned on that."""


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A policy file as it is written, and as it is with an artifact's combinations at hand."""

    name: str
    text: str = field(repr=False)
    written: Policy
    parsed: Policy

    @classmethod
    def read(cls, path: Path, artifact: Artifact) -> "PolicyText":
        """Read a policy file. Raises `PolicyError`."""
        text = _read_policy(path)
        written = parse_policy(text, path.name)
        return cls(path.name, text, written, written.with_combinations(artifact.manifest.combinations))


def settle(
    artifact: Artifact, policy: PolicyText, groups: TunePrompts, request: Request, limits: Sequence[Limit]
) -> Tuning:
    """Set the thresholds of `policy` on scored prompts; nothing is written.

    Raises `PolicyError` and `CalibrationError` (also `TooFewNegatives`).
    """
    parsed = policy.parsed

    def bound(tuned: Policy) -> BoundPolicy:
        return bind_to(artifact, tuned, pinned=False)

    platt = _platt_at(artifact, request.prevalence)
    plan, scores, joint = _plan(artifact, parsed, groups, request, limits, bound)
    tuned = bound(with_numbers(parsed, {place: number.value for place, number in plan.items()}))
    after = outcomes(tuned, groups.named())
    current, note = _bound_or_note(bound, parsed)
    return Tuning(
        diff=policy_diff(policy.text, policy.name, policy.written, plan, comments_of(plan, after)),
        scores=scores,
        joint=joint,
        before=outcomes(current, groups.named()) if current else {},
        after=after,
        platt=platt,
        notes=(*note, *groups.notes, *_idle(tuned)),
        current=current,
        tuned=tuned,
    )


def _plan(
    artifact: Artifact,
    policy: Policy,
    groups: TunePrompts,
    request: Request,
    limits: Sequence[Limit],
    bound: Callable[[Policy], BoundPolicy],
) -> tuple[Plan, tuple[Tuned, ...], Joint | None]:
    """Return a number for each place, with what it comes from: scores' own cuts, or limits on the whole policy."""
    if limits:
        asked = Prompts(groups.benign, groups.harmful, groups.hard)
        joint = find_setting(policy, limits, asked, _reference(artifact, policy), request.confidence, bound)
        return joint.plan, (), joint
    if request.block_fpr is not None and request.flag_fpr is not None:
        bands = certify_bands(policy, groups.benign, request.block_fpr, request.flag_fpr, request.confidence)
        plan = band_plan(policy, bands, groups.benign, request.confidence)
        return plan, tuple(tune_bands(bands, groups.harmful)), None
    scores = tune_scores(groups.benign, groups.harmful, request.target_fpr, request.confidence)
    return stated_plan(policy, groups.benign, request.target_fpr, request.confidence), tuple(scores), None


def _reference(artifact: Artifact, policy: Policy) -> Prompts:
    names = [probe.name for probe in artifact.manifest.probes]
    benign, harmful = (
        score_columns(policy, names, artifact.tensors[name].numpy()) for name in (BENIGN_SCORES, HARMFUL_SCORES)
    )
    return Prompts(Sample(benign), harmful)


def _bound_or_note(bound: Callable[[Policy], BoundPolicy], policy: Policy) -> tuple[BoundPolicy | None, list[str]]:
    try:
        return bound(policy), []
    except PolicyError as error:
        # Tuning is what mends this policy: that it cannot be served as it is must not stand in the way.
        return None, [f"as it is, the policy cannot be served with this artifact: {error.field}: {error.problem}"]


def _idle(tuned: BoundPolicy) -> list[str]:
    return [
        f"rule {idle} never decides: {before} fires wherever it would, and goes before it"
        for idle, before in tuned.idle_rules.items()
    ]


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
