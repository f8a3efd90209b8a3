"""Linear classifiers: per block, over several blocks, and over the mean of all tokens.

Each is folded into one weight and bias, so that serving knows only linear probes. Standardisation is part of the fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no annotations

from calibration.fitting.choosing import CrossValidation, Fit
from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.classifiers.discriminant import fit_lda, fit_lda_held
from calibration.prompts.progress import track
from calibration.recording.activations import Where
from probes.manifest import Probe
from probes.readout import Readout

_INVERSE_PENALTY = 0.1
"""scikit-learn's C for standardised features: with about as many dimensions as prompts, weaker penalties memorise."""
_STACK_DEPTHS = (0.25, 0.85)
_MOST_STACKED = 12
"""Blocks between these depths, thinned to at most 12: earlier ones read words, later ones the next token."""
_JOINT_FROM, _MOST_JOINT = 0.25, 4
"""Blocks read at once: evenly from a quarter of the depth to the last block, which alone reads worse and adds most."""
_LARGE = 1 << 24
"""Numbers in a feature matrix from which several threads help; below it they cost more than they save (30-fold at
1,350 by 384 on two cores)."""


_BY_CHANCE = "blocks and positions were chosen by a random part of the training prompts: too few sources are named"


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
    """A place to read, and how a reading there fares on sources that it was not fitted on."""

    layer: int
    where: Where
    logits: npt.NDArray[np.float64]
    """Out of fold, by `Judges`."""
    recall: float
    auroc: float

    @property
    def evidence(self) -> dict[str, float]:
        return {"selection_auroc": self.auroc, "selection_recall": self.recall}


def fit_classifiers(training: TrainingSet) -> Fitted:
    """Return probes `logistic`, `lda`, `stack`, `pooled`, `joint` and `joint_pooled`.

    The first two read the block and position (last token, or the instruction's) with the best recall at 1 % false positives,
    then AUROC, on sources left out of the fit (`choosing`). `stack` sums blocks at the position of `logistic`; `pooled`
    averages over all tokens. The `joint` ones are one regression on several blocks at once, at the prompt's last token and
    over the mean: they are chosen by nothing.
    """
    cross_validation = CrossValidation.of(training)
    places: tuple[Where, ...] = (0, training.instruction_offset)
    logistic = _choices(cross_validation, fit_logistic, places)
    best, lda = _best(logistic), _best(_choices(cross_validation, fit_lda_held, places))
    pooled = _best(_choices(cross_validation, fit_logistic, ("mean",)))
    return Fitted(
        probes=(
            _probe("logistic", "L2 logistic regression", best, _logistic(training, best.layer, best.where)),
            _probe("lda", "shrinkage linear discriminant", lda, _lda(training, lda.layer, lda.where)),
            _stack(cross_validation, [choice for choice in logistic if choice.where == best.where]),
            _probe(
                "pooled",
                "L2 logistic regression on the mean of all tokens",
                pooled,
                _logistic(training, pooled.layer, pooled.where),
            ),
            _joint(training, "joint", 0),
            _joint(training, "joint_pooled", "mean"),
        ),
        notes=() if cross_validation.by_source else (_BY_CHANCE,),
    )


def _choices(cross_validation: CrossValidation, fit: Fit, places: Sequence[Where]) -> list[_Choice]:
    found = []
    for layer in track(range(cross_validation.training.chat.num_layers), "choosing where to read"):
        for where in places:
            with threadpool_limits(
                1 if len(cross_validation.rows) * cross_validation.training.chat.hidden_size < _LARGE else None
            ):
                logits = cross_validation.logits(fit, layer, where)
            found.append(_Choice(layer, where, logits, *cross_validation.numbers(logits)))
    return found


def _best(choices: Sequence[_Choice]) -> _Choice:
    return max(choices, key=lambda choice: (choice.recall, choice.auroc))


def _logistic(training: TrainingSet, layer: int, where: Where) -> Linear:
    rows = training.held(training.fit)
    return fit_logistic(training.features(layer, where, rows), training.harmful[rows])


def _lda(training: TrainingSet, layer: int, where: Where) -> Linear:
    with threadpool_limits(1 if len(training.fit) * training.chat.hidden_size < _LARGE else None):
        return fit_lda(lambda: training.chunks(layer, where, training.fit))


def _probe(name: str, method: str, choice: _Choice, linear: Linear) -> FittedProbe:
    spec = Probe(
        name=name,
        method=method,
        layers=(choice.layer,),
        readout=_readout(choice.where),
        bias=linear.bias,
        evidence=choice.evidence,
    )
    return FittedProbe(spec, torch.from_numpy(linear.weight.astype(np.float32))[None, None])


def _readout(where: Where) -> Readout:
    return Readout(kind="mean") if where == "mean" else Readout(kind="last", offset=where)


def _stack(cross_validation: CrossValidation, choices: Sequence[_Choice]) -> FittedProbe:
    """Combine the blocks' readings by a second logistic regression, fitted on logits that no block fitted itself."""
    training, stacked = cross_validation.training, _thinned(choices, cross_validation.training.chat.num_layers)
    logits = np.stack([each.logits for each in stacked], axis=1)
    judged = np.isfinite(logits).all(axis=1)
    combined = fit_logistic(logits[judged].astype(np.float32), cross_validation.harmful[judged])
    recall, area = cross_validation.numbers(combined(logits.astype(np.float32)))
    parts = [_logistic(training, each.layer, each.where) for each in stacked]
    weight = np.stack([share * part.weight for share, part in zip(combined.weight, parts, strict=True)])
    spec = Probe(
        name="stack",
        method="logistic regression over the logits of several blocks",
        layers=tuple(each.layer for each in stacked),
        readout=_readout(stacked[0].where),
        bias=combined.bias + float(sum(share * part.bias for share, part in zip(combined.weight, parts, strict=True))),
        evidence={"selection_auroc": area, "selection_recall": recall},
    )
    return FittedProbe(spec, torch.from_numpy(weight.astype(np.float32)).unsqueeze(1))


def _joint(training: TrainingSet, name: str, where: Where) -> FittedProbe:
    """Fit one regression on the features of several blocks together; its evidence is of selection prompts."""
    first, last = int(_JOINT_FROM * training.chat.num_layers), training.chat.num_layers - 1
    layers = np.unique(np.linspace(min(first, last), last, _MOST_JOINT).round().astype(int)).tolist()

    def read(rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        held = training.held(rows, blocks=len(layers))
        features = [training.features(layer, where, held) for layer in layers]
        return np.concatenate(features, axis=1), training.harmful[held]

    linear = fit_logistic(*read(training.fit))
    features, harmful = read(training.select)
    above, below = linear(features[harmful]), linear(features[~harmful])
    spec = Probe(
        name=name,
        method=f"L2 logistic regression on {len(layers)} blocks at once",
        layers=tuple(layers),
        readout=_readout(where),
        bias=linear.bias,
        evidence={"selection_auroc": auroc(above, below), "selection_recall": recall_at(above, below, 0.01)},
    )
    weight = linear.weight.astype(np.float32).reshape(len(layers), 1, -1)
    return FittedProbe(spec, torch.from_numpy(weight))


def _thinned(choices: Sequence[_Choice], num_layers: int) -> list[_Choice]:
    low, high = (depth * num_layers for depth in _STACK_DEPTHS)
    middle = [choice for choice in choices if low <= choice.layer + 1 <= high] or list(choices)
    keep = np.unique(np.linspace(0, len(middle) - 1, min(len(middle), _MOST_STACKED)).round().astype(int))
    return [middle[index] for index in keep]


METHOD = Method(
    "classifiers",
    fit_classifiers,
    rank=30,
    plain=True,
    refits=True,
    reads={"stack": "the last tokens, block by block", "joint": "several blocks at once"},
)
