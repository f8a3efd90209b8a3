"""Probe `novelty`: how much further a prompt is from benign prompts than from prompts in general.

A relative Mahalanobis distance (`calibration.methods.novelty.distance`) at the block and place, last token or mean,
where it tells harm best among prompts of sources that its Gaussians did not see. It escalates: unusual is not harmful.
"""

from dataclasses import dataclass

import numpy as np
import torch

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.metrics import auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.novelty.distance import Distance, Space
from calibration.methods.novelty.massive import Mask, massive_in_recording, survey_tokens
from calibration.methods.novelty.massive_study import massive_study
from calibration.prompts.progress import track
from calibration.recording.places import Where, readout_at
from probes.manifest import Probe

NAME = "novelty"
_DEPTHS = (0.25, 0.85)
_MOST_LAYERS = 4
"""Each costs a covariance and its eigenvectors: 2 minutes a block at 4,096 coordinates."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One space, and what its distances are worth on sources that they did not see."""

    space: Space
    left_out: Mask
    auroc: float
    """Mean over the folds."""


def fit_novelty(training: TrainingSet) -> Fitted:
    """Return probe `novelty`, and the study of massive activations. Raises `CalibrationError`."""
    peaks = survey_tokens(training)
    places: list[tuple[int, Where]] = [(layer, where) for layer in _layers(training) for where in (0, "content")]
    candidates = [
        _candidate(training, layer, where, peaks[layer].massive) for layer, where in track(places, "measuring novelty")
    ]
    best = max(candidates, key=lambda each: each.auroc)
    massive = {(each.space.layer, each.space.where): each.left_out for each in candidates}
    return Fitted(probes=(_probe(training, best),), studies=(massive_study(training, peaks, massive),))


def _layers(training: TrainingSet) -> list[int]:
    depth = training.chat.num_layers
    low, high = (share * depth for share in _DEPTHS)
    middle = [layer for layer in range(depth) if low <= layer + 1 <= high] or [depth - 1]
    keep = np.linspace(0, len(middle) - 1, min(len(middle), _MOST_LAYERS)).round().astype(int)
    return [middle[index] for index in np.unique(keep)]


def _candidate(training: TrainingSet, layer: int, where: Where, seen_massive: Mask) -> _Candidate:
    left_out = seen_massive | massive_in_recording(training, layer, where, training.fit)
    space = Space.of(training, layer, where, training.fit, left_out)
    components, harmful = space.project(training), training.harmful
    areas = []
    for fold in training.folds():
        scores = Distance.of(components[_harmless(fold, fold.fit)], components[fold.fit])(components[fold.select])
        areas.append(auroc(scores[harmful[fold.select]], scores[~harmful[fold.select]]))
    return _Candidate(space, left_out, float(np.mean(areas)))


def _harmless(training: TrainingSet, rows: Rows) -> Rows:
    return rows[~training.harmful[rows]]


def _probe(training: TrainingSet, best: _Candidate) -> FittedProbe:
    space, harmful = best.space, training.harmful[training.select]
    components = space.project(training)
    distance = Distance.of(components[_harmless(training, training.fit)], components[training.fit])
    scores = distance(components[training.select])
    above, below = scores[harmful], scores[~harmful]
    spec = Probe(
        name=NAME,
        method=f"relative Mahalanobis distance on {len(space.weight)} principal components",
        role="escalates",
        layers=(space.layer,),
        channels=len(space.weight),
        readout=readout_at(space.where),
        head="mahalanobis",
        evidence={
            "selection_auroc": auroc(above, below),
            "selection_recall": recall_at(above, below, 0.01),
            "fold_auroc": best.auroc,
            "explained_variance": space.explained,
            "massive_coordinates": float(best.left_out.sum()),
        },
    )
    head = {name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in distance.tensors.items()}
    return FittedProbe(spec, torch.from_numpy(space.weight.astype(np.float32))[None], head)


METHOD = Method("novelty", fit_novelty, rank=90)
