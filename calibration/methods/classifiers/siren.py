"""Probe `siren`: a perceptron on features of several blocks that L1 regressions single out (arXiv 2604.18519).

Block by block, an L1 logistic regression on the mean over the content shows which features of the residual stream carry
harm: the few that make up most of its weight are kept. Each block is weighted by the F1 of its own regression on
selection prompts. A perceptron with one hidden layer reads the kept features of all blocks together.

Served, hidden units are channels of the tap: a mean is linear, so the inner layer is applied to each token, and what
follows is done once a prompt. The paper reads a second model; this reads the one that answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no annotations

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.metrics import auroc, low_end_auroc, recall_at
from calibration.fitting.training_set import TrainingSet
from calibration.methods.classifiers.weak_classifiers import Perceptron, fit_perceptron
from calibration.prompts.progress import track
from calibration.recording.places import readout_at
from probes.errors import CalibrationError
from probes.manifest import Probe

_MOST_BLOCKS = 12
"""Blocks that are read, evenly over the depth: each is a tap of its own."""
_INVERSE_PENALTY = 0.02
"""scikit-learn's C for standardised features: some dozens of features of a block are left."""
_WEIGHT_KEPT = 0.8
"""Share of a regression's absolute weight that the kept features make up."""
_HIDDEN = 64
_PENALTIES = (1.0, 10.0, 100.0)
"""Of the perceptron's squared weights: one is chosen by selection prompts."""

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Block:
    """The features of one block that are kept, and how much the block counts."""

    layer: int
    kept: npt.NDArray[np.int64]
    merit: float
    """F1 of its own regression on selection prompts."""


def fit_siren(training: TrainingSet) -> Fitted:
    """Return probe `siren`. Raises `CalibrationError` where no block has a feature that tells harm."""
    even = np.linspace(0, training.chat.num_layers - 1, min(_MOST_BLOCKS, training.chat.num_layers))
    layers = np.unique(even.round().astype(int)).tolist()
    found = [_block(training, layer) for layer in track(layers, "singling out features, block by block")]
    blocks = [block for block in found if len(block.kept) and block.merit > 0]
    if not blocks:
        raise CalibrationError(
            "no block has a feature that tells harmful prompts from harmless ones",
            field="prompts",
            remedy="give more prompts of either class, or leave method 'siren' out",
        )
    rows = training.held(training.fit, blocks=len(blocks))
    features, select = (_gathered(training, blocks, each) for each in (rows, training.select))
    importance = np.concatenate([np.full(len(block.kept), block.merit) for block in blocks])
    candidates = [
        fit_perceptron(features, training.harmful[rows], _HIDDEN, penalty, importance / importance.max())
        for penalty in _PENALTIES
    ]
    harmful = training.harmful[training.select]
    logits = [candidate(select) for candidate in candidates]
    best = max(range(len(candidates)), key=lambda index: low_end_auroc(*_sides(logits[index], harmful)))
    above, below = _sides(logits[best], harmful)
    evidence = {
        "selection_auroc": auroc(above, below),
        "selection_recall": recall_at(above, below, 0.01),
        "features": float(features.shape[1]),
        "penalty": _PENALTIES[best],
    }
    return Fitted(probes=(_probe(training, blocks, candidates[best], evidence),))


def _sides(logits: npt.NDArray[np.float64], harmful: Labels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return logits[harmful], logits[~harmful]


def _block(training: TrainingSet, layer: int) -> _Block:
    rows = training.held(training.fit)
    features = training.features(layer, "content", rows).astype(np.float64)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(
        l1_ratio=1.0, solver="liblinear", C=_INVERSE_PENALTY, class_weight="balanced", random_state=0
    )
    with threadpool_limits(1):
        model.fit((features - mean) / scale, training.harmful[rows])
    select = training.features(layer, "content", training.select)
    merit = f1_score(training.harmful[training.select], model.predict((select - mean) / scale))
    return _Block(layer, most_of_the_weight(model.coef_[0], _WEIGHT_KEPT), float(merit))


def most_of_the_weight(weight: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.int64]:
    """Return, in order, the fewest places of `weight` `[D]` whose absolute values make up a `share` of their sum."""
    size = np.abs(weight)
    if not size.any():
        return np.arange(0)
    order = np.argsort(-size, kind="stable")
    needed = int(np.searchsorted(np.cumsum(size[order]), share * size.sum())) + 1
    return np.sort(order[: min(needed, int((size > 0).sum()))])


def _gathered(training: TrainingSet, blocks: Sequence[_Block], rows: npt.NDArray[np.int64]) -> Features:
    parts = [training.features(block.layer, "content", rows)[:, block.kept] for block in blocks]
    return np.concatenate(parts, axis=1)


def _probe(
    training: TrainingSet, blocks: Sequence[_Block], found: Perceptron, evidence: dict[str, float]
) -> FittedProbe:
    weight = np.zeros((len(blocks), _HIDDEN, training.chat.hidden_size))
    ends = np.cumsum([len(block.kept) for block in blocks])
    for index, (block, end) in enumerate(zip(blocks, ends, strict=True)):
        weight[index][:, block.kept] = found.inner[:, end - len(block.kept) : end]
    spec = Probe(
        name="siren",
        method=f"perceptron on {found.inner.shape[1]} features of {len(blocks)} blocks, singled out by L1 regressions",
        layers=tuple(block.layer for block in blocks),
        channels=_HIDDEN,
        readout=readout_at("content"),
        head="mlp",
        bias=found.bias,
        evidence=evidence,
    )
    head = {"head_bias": found.inner_bias, "head_weight": found.outer}
    return FittedProbe(
        spec,
        torch.from_numpy(weight.astype(np.float32)),
        {name: torch.from_numpy(each.astype(np.float32)) for name, each in head.items()},
    )


METHOD = Method("siren", fit_siren, rank=45, refits=True)
