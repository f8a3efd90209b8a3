"""Leave one source out: what probes are worth on prompts of a kind that they never saw.

Each source is left out in turn. Probes are fitted and chosen on the others, a 1 % threshold is set on harmless prompts of
the others that took no part in either, and the source left out is met with it, as new traffic would be.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration.activations import Where
from calibration.controls import tfidf_scores
from calibration.methods.classifiers import fit_classifiers
from calibration.methods.fitted import FittedProbe
from calibration.methods.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.token_level import fit_token_level, score_rows
from calibration.methods.training import Rows, TrainingSet
from calibration.metrics import auroc, cut_at, rate
from calibration.progress import track
from calibration.prompts import MINIMUM_PER_CLASS
from calibration.stage_file import Strict, write_whole
from calibration.template import EncodedPrompts
from probes.errors import CalibrationError
from probes.manifest import Rate
from probes.scoring import ProbeBank, score_of

CONTROL = "tfidf"
_TARGET = 0.01
_JUDGED_SHARE = 0.25
_SEED = 20_260

Scores = npt.NDArray[np.floating]


class Unseen(Strict):
    """One probe or control on one source that it did not see."""

    auroc: float | None
    """Of the source's harmful prompts against the other sources' harmless ones."""
    recall: Rate | None
    """Share of the source's harmful prompts above the other sources' 1 % cut."""
    flagged: Rate | None
    """Share of the source's harmless prompts above it."""


class UnseenSources(Strict):
    """The whole table: by source, then by probe or control."""

    target_fpr: float
    sources: dict[str, dict[str, Unseen]]


@dataclass(frozen=True, slots=True)
class _Fold:
    """One source left out: the others to fit on, harmless ones of theirs to set the cut, and the source's own."""

    training: TrainingSet
    judged: Rows
    left_out: Rows


def unseen_sources(training: TrainingSet, folder: Path) -> UnseenSources:
    """Return the table over the training set's sources. Finished sources are kept in `folder` and not done again.

    Probes whose choice needs interventions on the model (the refusal direction) are not among them. Raises
    `CalibrationError` where there are not two sources, or where one source holds nearly all prompts of a class.
    """
    require_sources(training.prompts)
    labels = _labels(training.prompts)
    names = np.unique(labels).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Unseen]] = {}
    for number, name in enumerate(track(names, "leaving out one source at a time")):
        path = folder / f"{number:03d}.json"
        if not path.exists():
            one = UnseenSources(
                target_fpr=_TARGET, sources={name: _measure(_leave_out(training, labels == name, name))}
            )
            write_whole(path, one.model_dump_json())
        found |= UnseenSources.model_validate_json(path.read_text()).sources
    return UnseenSources(target_fpr=_TARGET, sources=found)


def require_sources(prompts: EncodedPrompts) -> None:
    """Raise `CalibrationError` unless each source can be left out: checked before any work is done.

    What is left must be enough for both classes to be fitted on; the exact count is known when prompts are divided.
    """
    labels = _labels(prompts)
    names = np.unique(labels).tolist()
    if len(names) < 2:
        raise CalibrationError(
            f"the training prompts have {len(names)} source",
            field="source",
            remedy='name at least two in the prompt file: {"prompt": …, "label": …, "source": "…"}',
        )
    for name in names:
        for label in (True, False):
            _require_enough(int((prompts.harmful[labels != name] == label).sum()), name, harmful=label)


def _labels(prompts: EncodedPrompts) -> npt.NDArray[np.str_]:
    return np.array([prompt.source or "" for prompt in prompts.prompts])


def _require_enough(count: int, name: str, *, harmful: bool) -> None:
    if count < MINIMUM_PER_CLASS:
        kind = "harmful" if harmful else "harmless"
        raise CalibrationError(
            f"without source {name!r} {count} {kind} prompts are left to fit on",
            field="source",
            remedy=f"add {kind} prompts of other sources: {MINIMUM_PER_CLASS} to fit on are the least",
        )


def _leave_out(training: TrainingSet, out: npt.NDArray[np.bool_], name: str) -> _Fold:
    fit, select = training.fit[~out[training.fit]], training.select[~out[training.select]]
    harmless = fit[~training.harmful[fit]]
    judged = np.random.default_rng(_SEED).permutation(harmless)[: int(len(harmless) * _JUDGED_SHARE)]
    kept = np.setdiff1d(fit, judged)
    for label in (True, False):
        sizes = [int((training.harmful[rows] == label).sum()) for rows in (kept, select)]
        _require_enough(sizes[0] if sizes[1] else 0, name, harmful=label)
    return _Fold(replace(training, fit=kept, select=select), np.sort(judged), np.flatnonzero(out))


def _measure(fold: _Fold) -> dict[str, Unseen]:
    harmful = fold.training.harmful[fold.left_out]
    return {
        name: _unseen(score(fold.judged), score(fold.left_out), harmful) for name, score in _contenders(fold.training)
    }


def _contenders(training: TrainingSet) -> Iterator[tuple[str, Callable[[Rows], Scores]]]:
    for method in (fit_harmfulness_direction, fit_classifiers):
        for probe in method(training).probes:
            yield probe.spec.name, recorded_scores(training, probe).__getitem__
    for probe in fit_token_level(training).probes:
        yield probe.spec.name, partial(score_rows, training, probe)
    learned = training.prompts.subset(np.concatenate([training.fit, training.select]))
    yield CONTROL, lambda rows: tfidf_scores(learned, training.prompts.subset(rows))


def recorded_scores(training: TrainingSet, probe: FittedProbe) -> npt.NDArray[np.float64]:
    """Return a probe's scores `[N]` on all training prompts, from their recorded activations."""
    readout = probe.spec.readout
    if readout.kind not in ("last", "mean") or probe.spec.site != "resid_post":
        raise CalibrationError(
            f"readout {readout.kind} at {probe.spec.site} cannot be had from what is recorded",
            field=probe.spec.name,
            remedy="score the prompts with `score_rows`, which passes them through the model",
        )
    where: Where = "mean" if readout.kind == "mean" else readout.offset
    parts = [
        training.project(layer, where, row.double().numpy().T)
        for layer, row in zip(probe.spec.layers, probe.weight, strict=True)
    ]
    [head] = ProbeBank.of([probe.spec], probe.tensors()).heads
    return score_of(probe.spec, np.sum(parts, axis=0), head)


def _unseen(judged: Scores, left_out: Scores, harmful: npt.NDArray[np.bool_]) -> Unseen:
    cut = cut_at(judged, _TARGET)
    above, below = left_out[harmful], left_out[~harmful]
    return Unseen(
        auroc=auroc(above, judged) if len(above) else None,
        recall=rate(int((above > cut).sum()), len(above)) if len(above) else None,
        flagged=rate(int((below > cut).sum()), len(below)) if len(below) else None,
    )
