"""Linear classifiers: per block, over several blocks, and over the mean of all tokens.

Each is folded into one weight and bias, so that serving knows only linear probes. Standardisation is part of the fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no annotations

from calibration.activations import Where
from calibration.methods.discriminant import fit_lda
from calibration.methods.fitted import Fitted, FittedProbe
from calibration.methods.linear import Linear
from calibration.methods.training import TrainingSet
from calibration.metrics import auroc, recall_at
from probes.manifest import Probe
from probes.readout import Readout

_INVERSE_PENALTY = 0.1
"""scikit-learn's C for standardised features: with about as many dimensions as prompts, weaker penalties memorise."""
_STACK_DEPTHS = (0.25, 0.85)
_MOST_STACKED = 12
"""Blocks between these depths, thinned to at most 12: earlier ones read words, later ones the next token."""
_LARGE = 1 << 24
"""Numbers in a feature matrix from which several threads help; below it they cost more than they save (30-fold at
1,350 by 384 on two cores)."""


Fit = Callable[[TrainingSet, int, Where], Linear]


def fit_logistic(features: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_]) -> Linear:
    """Return the L2 logistic regression on standardised features, classes weighted equally."""
    exact = features.astype(np.float64)
    mean, scale = exact.mean(axis=0), exact.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=1000)
    with threadpool_limits(_threads(features)):
        model.fit((exact - mean) / scale, harmful)
    weight = model.coef_[0] / scale
    return Linear(weight, float(model.intercept_[0] - mean @ weight))


def _threads(features: npt.NDArray[np.float32]) -> int | None:
    return 1 if features.size < _LARGE else None


@dataclass(frozen=True, slots=True)
class _Choice:
    layer: int
    where: Where
    linear: Linear
    recall: float
    auroc: float


def fit_classifiers(training: TrainingSet) -> Fitted:
    """Return probes `logistic`, `lda`, `stack` and `pooled`.

    The first two read the block and position (last token, or the instruction's) with the best selection recall at 1 %
    false positives, then AUROC. `stack` sums blocks at the position of `logistic`; `pooled` averages over all tokens.
    """
    places: tuple[Where, ...] = (0, training.instruction_offset)
    logistic = _all_choices(training, _logistic, places)
    best = _best(logistic)
    return Fitted(
        probes=(
            _probe("logistic", "L2 logistic regression", best),
            _probe("lda", "shrinkage linear discriminant", _best(_all_choices(training, _lda, places))),
            _stack(training, [choice for choice in logistic if choice.where == best.where]),
            _probe(
                "pooled",
                "L2 logistic regression on the mean of all tokens",
                _best(_all_choices(training, _logistic, ("mean",))),
            ),
        )
    )


def _all_choices(training: TrainingSet, fit: Fit, places: Sequence[Where]) -> list[_Choice]:
    return [_fit_one(training, fit, layer, where) for where in places for layer in range(training.chat.num_layers)]


def _fit_one(training: TrainingSet, fit: Fit, layer: int, where: Where) -> _Choice:
    linear = fit(training, layer, where)
    return _Choice(layer, where, linear, *_selection_numbers(_selected(training, linear, layer, where), training))


def _logistic(training: TrainingSet, layer: int, where: Where) -> Linear:
    rows = training.held(training.fit)
    return fit_logistic(training.features(layer, where, rows), training.harmful[rows])


def _lda(training: TrainingSet, layer: int, where: Where) -> Linear:
    with threadpool_limits(1 if len(training.fit) * training.chat.hidden_size < _LARGE else None):
        return fit_lda(lambda: training.chunks(layer, where, training.fit))


def _selected(training: TrainingSet, linear: Linear, layer: int, where: Where) -> npt.NDArray[np.float64]:
    return training.project(layer, where, linear.weight)[training.select] + linear.bias


def _selection_numbers(logits: npt.NDArray[np.float64], training: TrainingSet) -> tuple[float, float]:
    harmful = training.harmful[training.select]
    above, below = logits[harmful], logits[~harmful]
    return recall_at(above, below, 0.01), auroc(above, below)


def _best(choices: Sequence[_Choice]) -> _Choice:
    return max(choices, key=lambda choice: (choice.recall, choice.auroc))


def _probe(name: str, method: str, choice: _Choice) -> FittedProbe:
    spec = Probe(
        name=name,
        method=method,
        layers=(choice.layer,),
        readout=_readout(choice.where),
        bias=choice.linear.bias,
        evidence={"selection_auroc": choice.auroc, "selection_recall": choice.recall},
    )
    return FittedProbe(spec, torch.from_numpy(choice.linear.weight.astype(np.float32))[None, None])


def _readout(where: Where) -> Readout:
    return Readout(kind="mean") if where == "mean" else Readout(kind="last", offset=where)


def _stack(training: TrainingSet, choices: Sequence[_Choice]) -> FittedProbe:
    """Combine the blocks' logits by a second logistic regression, fitted on the selection prompts that no block saw."""
    stacked = _thinned(choices, training.chat.num_layers)
    logits = np.stack([_selected(training, each.linear, each.layer, each.where) for each in stacked], axis=1)
    combined = fit_logistic(logits.astype(np.float32), training.harmful[training.select])
    recall, area = _selection_numbers(combined(logits.astype(np.float32)), training)
    weight = np.stack([share * each.linear.weight for share, each in zip(combined.weight, stacked, strict=True)])
    spec = Probe(
        name="stack",
        method="logistic regression over the logits of several blocks",
        layers=tuple(each.layer for each in stacked),
        readout=_readout(stacked[0].where),
        bias=combined.bias
        + float(sum(share * each.linear.bias for share, each in zip(combined.weight, stacked, strict=True))),
        evidence={"selection_auroc": area, "selection_recall": recall},
    )
    return FittedProbe(spec, torch.from_numpy(weight.astype(np.float32)).unsqueeze(1))


def _thinned(choices: Sequence[_Choice], num_layers: int) -> list[_Choice]:
    low, high = (depth * num_layers for depth in _STACK_DEPTHS)
    middle = [choice for choice in choices if low <= choice.layer + 1 <= high] or list(choices)
    keep = np.unique(np.linspace(0, len(middle) - 1, min(len(middle), _MOST_STACKED)).round().astype(int))
    return [middle[index] for index in keep]
