"""Leave one source out: what probes are worth on prompts of a kind that they never saw.

Each family of sources is left out in turn. Probes are fitted and chosen on the others, a 1 % threshold is set on
harmless prompts of the others that took no part in either, and the family left out is met with it, as new traffic would
be. Where prompts were wrapped, too, wrapped copies are left out once like a family.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from calibration.evaluation.unseen.combination import FoldScores, choose_combination
from calibration.evaluation.unseen.contenders import (
    CONTROLS,
    ControlInputs,
    control_scores,
    even_combination,
    probe_scores,
)
from calibration.evaluation.unseen.left_out import (
    SEED,
    WRAPPED,
    LeftOut,
    kinds_to_leave_out,
    leave_out,
    require_families,
)
from calibration.fitting.contract import Method
from calibration.fitting.metrics import auroc, cut_at, rate
from calibration.fitting.training_set import TrainingSet
from calibration.prompts.progress import track
from calibration.recording.stage_file import Strict, written_whole
from probes.errors import CalibrationError
from probes.manifest import Rate

COMBINED = "combined"
_CONTROLS = "controls"
_TENSORS = ("judged", "judged_harmful", "left_out", "harmful")
_TARGET = 0.01

Scores = npt.NDArray[np.floating]


class Unseen(Strict):
    """One probe or control on one source that it did not see."""

    auroc: float | None
    """Of the source's harmful prompts against the other families' harmless ones."""
    recall: Rate | None
    """Share of the source's harmful prompts above the other families' 1 % cut."""
    flagged: Rate | None
    """Share of the source's harmless prompts above it."""


class UnseenSources(Strict):
    """The whole table: by source, then by probe, combination or control. Sources of one family were left out together.

    Source `wrapped copies` is of prompts that the project wrapped itself, met by what was fitted on none of them.
    """

    target_fpr: float
    sources: dict[str, dict[str, Unseen]]
    combination: dict[str, float]
    """Weights by probe of the combination that is chosen over all families.

    In the table, `combined` is for each family the combination that the others chose."""

    @property
    def named(self) -> dict[str, dict[str, Unseen]]:
        """The sources that prompts name: without wrapped copies, which are no traffic to take a mean over."""
        return {source: row for source, row in self.sources.items() if source != WRAPPED}


def unseen_sources(
    training: TrainingSet,
    folder: Path,
    methods: Sequence[Method],
    refusal_tokens: Sequence[int] = (),
    only: Collection[str] | None = None,
    seed: int = SEED,
    *,
    embed: bool = True,
) -> UnseenSources:
    """Return the table over the training set's families, or those in `only`, of the probes of `methods` and of
    controls.

    `embed` asks for the control that embeds sentences, too.
    `seed` says which prompts set the cut, and so which are fitted on. Each family's scores by each method are a file in
    `folder`, which is for one seed: they are not done again. What controls need of all prompts is kept next to it.

    Probes that were not found in every fold are left out of the table. Raises `CalibrationError` where there are not
    two families, where one holds nearly all prompts of a class, or where no probe was found in every fold.
    """
    require_families(training.prompts)
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {method.name: method for method in methods}
    tasks = {
        (family, part): folder / f"{number:03d}-{part}.safetensors"
        for number, family in enumerate(kinds_to_leave_out(training.prompts))
        for part in (*by_name, _CONTROLS)
        if only is None or family in only
    }
    missing = [task for task, path in tasks.items() if not path.exists()]
    asked = any(part == _CONTROLS for _, part in missing)
    kept = folder.parent / "controls.safetensors"
    beside = ControlInputs.of(training, refusal_tokens, kept, embed=embed) if asked else ControlInputs(None, None)
    for family, part in track(missing, "leaving out one family of sources at a time"):
        _measure(leave_out(training, family, seed), by_name.get(part), beside).save(tasks[family, part])
    found: dict[str, _Measured] = {}
    for (family, _), path in tasks.items():
        measured = _Measured.load(path)
        found[family] = found[family].beside(measured) if family in found else measured
    return _table(found, methods)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What some contenders gave while one family was left out."""

    scores: FoldScores
    names: tuple[str, ...]
    """Contenders: the scores' columns."""
    sources: tuple[str, ...]
    """The source of each prompt that was left out."""

    def columns(self, names: Sequence[str]) -> FoldScores:
        """Return the scores of some contenders, in the order of `names`."""
        places = [self.names.index(name) for name in names]
        return replace(self.scores, judged=self.scores.judged[:, places], left_out=self.scores.left_out[:, places])

    def beside(self, other: "_Measured") -> "_Measured":
        """Return this with the columns of other contenders on the same prompts after its own."""
        mine, theirs = self.scores, other.scores
        judged, left_out = (
            np.concatenate([getattr(each, name) for each in (mine, theirs)], axis=1) for name in ("judged", "left_out")
        )
        scores = replace(mine, judged=judged, left_out=left_out)
        return replace(self, scores=scores, names=self.names + other.names)

    def save(self, path: Path) -> None:
        tensors = {name: np.ascontiguousarray(getattr(self.scores, name)) for name in _TENSORS}
        with written_whole(path) as staging:
            save_file(tensors, staging, {"names": json.dumps(self.names), "sources": json.dumps(self.sources)})

    @classmethod
    def load(cls, path: Path) -> "_Measured":
        with safe_open(path, framework="np") as file:
            scores = FoldScores(*(file.get_tensor(name) for name in _TENSORS))
            names, sources = (tuple(json.loads(file.metadata()[key])) for key in ("names", "sources"))
        return cls(scores, names, sources)


def _measure(fold: LeftOut, method: Method | None, beside: ControlInputs) -> _Measured:
    """Measure the probes of a method, or the controls where there is none."""
    rows = np.concatenate([fold.judged, fold.left_out])
    scores = probe_scores(fold, method, rows) if method else control_scores(fold, beside, rows)
    # A method may find nothing: a fold on which the model does not refuse has no refusal readout.
    columns = np.stack(list(scores.values()), axis=1) if scores else np.empty((len(rows), 0))
    judged, left_out = np.split(columns, [len(fold.judged)])
    harmful = fold.training.harmful
    fold_scores = FoldScores(judged, harmful[fold.judged], left_out, harmful[fold.left_out])
    return _Measured(fold_scores, tuple(scores), fold.sources)


def _table(measured: dict[str, _Measured], methods: Sequence[Method]) -> UnseenSources:
    first = next(iter(measured.values())).names
    names = [name for name in first if all(name in each.names for each in measured.values())]
    own = [name for name in names if name not in CONTROLS]
    if not own:
        raise CalibrationError(
            "no probe was found in every fold",
            field="--leave-one-source-out",
            remedy="ask for another method too: --only classifiers finds probes in every fold",
        )
    logits = {family: each.columns(own).in_logits() for family, each in measured.items()}
    sources = {}
    for family, each in measured.items():
        columns = {name: each.columns([name]) for name in names}
        weights = _chosen({other: fold for other, fold in logits.items() if other != family}, own, methods)
        columns[COMBINED] = logits[family].combined(np.array([weights.get(name, 0.0) for name in own]))
        for source in sorted(set(each.sources)):
            rows = np.array(each.sources) == source
            sources[source] = {name: _unseen(fold, rows) for name, fold in columns.items()}
    return UnseenSources(target_fpr=_TARGET, sources=sources, combination=_chosen(logits, own, methods))


def _chosen(folds: Mapping[str, FoldScores], names: Sequence[str], methods: Sequence[Method]) -> dict[str, float]:
    return choose_combination(list(folds.values()), names, _TARGET, even_combination(methods, names))


def _unseen(fold: FoldScores, rows: npt.NDArray[np.bool_]) -> Unseen:
    """Return what one column did on `rows` of the prompts left out."""
    judged = fold.judged[~fold.judged_harmful, 0]
    cut = cut_at(judged, _TARGET)
    above, below = fold.left_out[rows & fold.harmful, 0], fold.left_out[rows & ~fold.harmful, 0]
    return Unseen(
        auroc=auroc(above, judged) if len(above) else None,
        recall=rate(int((above > cut).sum()), len(above)) if len(above) else None,
        flagged=rate(int((below > cut).sum()), len(below)) if len(below) else None,
    )
