"""Evaluation: what the probes are worth on prompts that neither fitted nor certified them. One JSON structure."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from calibration.evaluation.reliability import Reliability, reliability
from calibration.fitting.judged import judged_by
from calibration.fitting.metrics import (
    FALSE_POSITIVE_RATES,
    auroc,
    certified_thresholds,
    evaluate_scores,
    rate,
    tpr_at_fpr,
)
from calibration.prompts.template import EncodedPrompts
from calibration.recording.stage_file import Strict
from guard.threshold import Threshold, minimum_negatives
from probes.manifest import Evaluation, Platt, Probe, Rate


class FrozenResult(Strict):
    """What a threshold certified on the calibration split did on this one."""

    target_fpr: float
    confidence: float
    threshold: float
    fpr: Rate
    tpr: Rate


class Group(Strict):
    """One category or source. Rates are at the frozen 1 % threshold, where there is one."""

    num_harmful: int
    num_harmless: int
    auroc: float | None
    """Of this group's harmful prompts against all harmless ones."""
    tpr: Rate | None
    fpr: Rate | None


class ProbeReport(Strict):
    """One probe's numbers."""

    evaluation: Evaluation
    frozen: tuple[FrozenResult, ...]
    categories: dict[str, Group]
    sources: dict[str, Group]
    reliability: tuple[Reliability, ...] = ()
    """Of its probabilities: as calibrated, and at this split's share of harmful prompts."""


class ControlReport(Strict):
    """A cheaper explanation's numbers. A probe that is no better than these has found nothing of its own."""

    what: str
    auroc: float
    tpr_at_fpr: dict[str, Rate]


class Report(Strict):
    """A whole evaluation."""

    split: str
    num_harmful: int
    num_harmless: int
    num_skipped: int
    probes: dict[str, ProbeReport]
    controls: dict[str, ControlReport]
    notes: tuple[str, ...]


def evaluate(
    prompts: EncodedPrompts,
    scores: npt.NDArray[np.float32],
    specs: Sequence[Probe],
    benign_calibration: npt.NDArray[np.float32],
    *,
    split: str,
    controls: Mapping[str, ControlReport],
    platt: Sequence[Platt | None] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Return the report on request `scores` `[N, K]` of the probes `specs`.

    A probe that has a category is judged by harmful prompts of that category.
    `benign_calibration` `[M, K]` are the artifact's benign scores: the frozen thresholds come from them.
    `platt` are the probes' maps to probabilities, whose reliability is reported where they are given.
    """
    harmful = prompts.harmful
    judged = [judged_by(spec, prompts) for spec in specs]
    probes = {
        spec.name: _report(
            prompts.subset(judged[column]),
            scores[judged[column], column],
            certified_thresholds(benign_calibration[:, column]),
            split,
            platt[column] if platt else None,
        )
        for column, spec in enumerate(specs)
    }
    return Report(
        split=split,
        num_harmful=int(harmful.sum()),
        num_harmless=int((~harmful).sum()),
        num_skipped=prompts.num_skipped,
        probes=probes,
        controls=dict(controls),
        notes=(*notes, *_sample_size_notes(int((~harmful).sum()), len(benign_calibration))),
    )


def control(what: str, scores: npt.NDArray[np.floating], harmful: npt.NDArray[np.bool_]) -> ControlReport:
    """Return the report of a control with scores `[N]`."""
    above, below = scores[harmful], scores[~harmful]
    return ControlReport(what=what, auroc=auroc(above, below), tpr_at_fpr=tpr_at_fpr(above, below))


def _report(
    prompts: EncodedPrompts,
    scores: npt.NDArray[np.float32],
    thresholds: Sequence[Threshold],
    split: str,
    platt: Platt | None,
) -> ProbeReport:
    cut = next((threshold.value for threshold in thresholds if threshold.target_fpr == FALSE_POSITIVE_RATES[0]), None)
    return ProbeReport(
        evaluation=evaluate_scores(scores, prompts.harmful, split),
        frozen=tuple(_frozen(scores, prompts.harmful, threshold) for threshold in thresholds),
        categories=_groups(prompts, scores, cut, "category"),
        sources=_groups(prompts, scores, cut, "source"),
        reliability=reliability(scores, prompts.harmful, platt),
    )


def _frozen(scores: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_], threshold: Threshold) -> FrozenResult:
    flagged = scores > threshold.value
    return FrozenResult(
        target_fpr=threshold.target_fpr,
        confidence=threshold.confidence,
        threshold=threshold.value,
        fpr=rate(int(flagged[~harmful].sum()), int((~harmful).sum())),
        tpr=rate(int(flagged[harmful].sum()), int(harmful.sum())),
    )


def _groups(
    prompts: EncodedPrompts, scores: npt.NDArray[np.float32], cut: float | None, key: Literal["category", "source"]
) -> dict[str, Group]:
    labels = np.array([getattr(prompt, key) or "" for prompt in prompts.prompts])
    names = [name for name in np.unique(labels).tolist() if name]
    return {name: _group(scores, prompts.harmful, labels == name, cut) for name in names}


def _group(
    scores: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_], member: npt.NDArray[np.bool_], cut: float | None
) -> Group:
    above, below = scores[member & harmful], scores[member & ~harmful]
    return Group(
        num_harmful=len(above),
        num_harmless=len(below),
        auroc=auroc(above, scores[~harmful]) if len(above) else None,
        tpr=rate(int((above > cut).sum()), len(above)) if len(above) and cut is not None else None,
        fpr=rate(int((below > cut).sum()), len(below)) if len(below) and cut is not None else None,
    )


def _sample_size_notes(num_harmless: int, num_calibration: int) -> list[str]:
    notes = []
    for alpha in FALSE_POSITIVE_RATES:
        needed = minimum_negatives(alpha)
        if num_harmless < needed:
            notes.append(
                f"no recall at {alpha:.1%} false positives: {num_harmless} harmless prompts, {needed} are needed"
            )
        if num_calibration < needed:
            notes.append(
                f"no certified {alpha:.1%} threshold: {num_calibration} benign calibration scores, {needed} are needed"
            )
    return notes
