"""Linear classifiers: per block, over several blocks, and over the mean of the content.

Each is folded into one weight and bias, so that serving knows only linear probes. Standardisation is part of the fold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no annotations

from calibration.fitting.choosing import CrossValidation, Fit, Judged
from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.classifiers.discriminant import fit_lda, fit_lda_held
from calibration.prompts.progress import track
from calibration.recording.places import Where, readout_at
from probes.manifest import Probe

_INVERSE_PENALTY = 0.1
"""scikit-learn's C for standardised features: with about as many dimensions as prompts, weaker penalties memorise."""
_INVERSE_PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003)
"""Among which one is chosen for each place: how much a model's stream can bear differs tenfold between models."""
_TO_CHOOSE_PLACES = 0.03
"""That by which places are compared: in the middle."""
_STACK_DEPTHS = (0.25, 0.85)
_MOST_STACKED = 12
"""Blocks between these depths, thinned to at most 12: earlier ones read words, later ones the next token."""
_JOINT_FROM, _MOST_JOINT = 0.25, 4
"""Blocks read at once: evenly from a quarter of the depth to the last block, which alone reads worse and adds most."""
_LARGE = 1 << 24
"""Numbers in a feature matrix from which several threads help; below it they cost more than they save (30-fold at
1,350 by 384 on two cores)."""

_POOLED = "L2 logistic regression on the mean of the content"
_BY_CHANCE = "blocks and positions were chosen by a random part of the training prompts: too few sources are named"


def fit_logistic(
    features: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_], inverse_penalty: float = _INVERSE_PENALTY
) -> Linear:
    """Return the L2 logistic regression on standardised features, classes weighted equally."""
    exact = features.astype(np.float64)
    mean, scale = exact.mean(axis=0), exact.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)
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
    """Of each prompt, by the reading that was fitted without its fold."""
    judged: Judged

    @property
    def evidence(self) -> dict[str, float]:
        return self.judged.evidence


@dataclass(frozen=True, slots=True)
class _Penalised(_Choice):
    """One that a logistic regression reads."""

    inverse_penalty: float

    @property
    def evidence(self) -> dict[str, float]:
        return self.judged.evidence | {"inverse_penalty": self.inverse_penalty}


_AnyChoice = TypeVar("_AnyChoice", bound=_Choice)


def fit_classifiers(training: TrainingSet) -> Fitted:
    """Return probes `logistic`, `lda`, `stack`, `pooled`, `joint` and `joint_pooled`.

    The first two read the block and position (last token, or the instruction's) that separate best at few false
    positives on sources left out of the fit (`choosing`). `stack` sums blocks at the position of `logistic`; `pooled`
    averages over the content. The `joint` ones are one regression on several blocks at once, at the prompt's last token
    and over the content: their blocks are chosen by nothing. Penalties of regressions are chosen like places.
    """
    cross_validation = CrossValidation.of(training)
    places: tuple[Where, ...] = (0, training.instruction_offset)
    logistic = _logistic_choice(cross_validation, places)
    pooled = _logistic_choice(cross_validation, ("content",))
    lda = _best([_choice(cross_validation, fit_lda_held, *place) for place in _everywhere(training, places)])
    return Fitted(
        probes=(
            _probe("logistic", "L2 logistic regression", logistic, _logistic(training, logistic)),
            _probe("lda", "shrinkage linear discriminant", lda, _lda(training, lda.layer, lda.where)),
            _stack(cross_validation, logistic),
            _probe("pooled", _POOLED, pooled, _logistic(training, pooled)),
            _joint(training, "joint", 0, logistic.inverse_penalty),
            _joint(training, "joint_pooled", "content", pooled.inverse_penalty),
        ),
        notes=() if cross_validation.by_source else (_BY_CHANCE,),
    )


def fit_pooled(training: TrainingSet) -> FittedProbe:
    """Return probe `pooled` alone, as `fit_classifiers` does."""
    choice = _logistic_choice(CrossValidation.of(training), ("content",))
    return _probe("pooled", _POOLED, choice, _logistic(training, choice))


def _everywhere(training: TrainingSet, places: Sequence[Where]) -> Iterator[tuple[int, Where]]:
    for layer in track(range(training.chat.num_layers), "choosing where to read"):
        for where in places:
            yield layer, where


def _choice(cross_validation: CrossValidation, fit: Fit, layer: int, where: Where) -> _Choice:
    numbers = len(cross_validation.rows) * cross_validation.training.chat.hidden_size
    with threadpool_limits(1 if numbers < _LARGE else None):
        logits = cross_validation.logits(fit, layer, where)
    return _Choice(layer, where, logits, cross_validation.judge(logits))


def _penalised(
    cross_validation: CrossValidation, layer: int, where: Where, inverse_penalty: float = _TO_CHOOSE_PLACES
) -> _Penalised:
    found = _choice(cross_validation, partial(fit_logistic, inverse_penalty=inverse_penalty), layer, where)
    return _Penalised(layer, where, found.logits, found.judged, inverse_penalty)


def _logistic_choice(cross_validation: CrossValidation, places: Sequence[Where]) -> _Penalised:
    """Choose the block and place for a logistic regression, and then its penalty there."""
    everywhere = _everywhere(cross_validation.training, places)
    best = _best([_penalised(cross_validation, *place) for place in everywhere])
    others = (value for value in _INVERSE_PENALTIES if value != best.inverse_penalty)
    return _best([best, *(_penalised(cross_validation, best.layer, best.where, value) for value in others)])


def _best(choices: Sequence[_AnyChoice]) -> _AnyChoice:
    return max(choices, key=lambda choice: choice.judged)


def _logistic(training: TrainingSet, choice: _Penalised) -> Linear:
    rows = training.held(training.fit)
    features = training.features(choice.layer, choice.where, rows)
    return fit_logistic(features, training.harmful[rows], choice.inverse_penalty)


def _lda(training: TrainingSet, layer: int, where: Where) -> Linear:
    with threadpool_limits(1 if len(training.fit) * training.chat.hidden_size < _LARGE else None):
        return fit_lda(lambda: training.chunks(layer, where, training.fit))


def _probe(name: str, method: str, choice: _Choice, linear: Linear) -> FittedProbe:
    spec = Probe(
        name=name,
        method=method,
        layers=(choice.layer,),
        readout=readout_at(choice.where),
        bias=linear.bias,
        evidence=choice.evidence,
    )
    return FittedProbe(spec, torch.from_numpy(linear.weight.astype(np.float32))[None, None])


def _stack(cross_validation: CrossValidation, like: _Penalised) -> FittedProbe:
    """Combine several blocks' readings, each like `like`, by a second regression on logits that none of them fitted."""
    training = cross_validation.training
    layers = _middle(training.chat.num_layers)
    stacked = [_penalised(cross_validation, layer, like.where, like.inverse_penalty) for layer in layers]
    logits = np.stack([each.logits for each in stacked], axis=1)
    known = np.isfinite(logits).all(axis=1)
    combined = fit_logistic(logits[known].astype(np.float32), cross_validation.harmful[known])
    judged = cross_validation.judge(combined(logits.astype(np.float32)))
    parts = [_logistic(training, each) for each in stacked]
    weight = np.stack([share * part.weight for share, part in zip(combined.weight, parts, strict=True)])
    spec = Probe(
        name="stack",
        method="logistic regression over the logits of several blocks",
        layers=tuple(layers),
        readout=readout_at(like.where),
        bias=combined.bias + float(sum(share * part.bias for share, part in zip(combined.weight, parts, strict=True))),
        evidence=judged.evidence,
    )
    return FittedProbe(spec, torch.from_numpy(weight.astype(np.float32)).unsqueeze(1))


def _joint(training: TrainingSet, name: str, where: Where, inverse_penalty: float) -> FittedProbe:
    """Fit one regression on the features of several blocks together; its evidence is of selection prompts."""
    first, last = int(_JOINT_FROM * training.chat.num_layers), training.chat.num_layers - 1
    layers = np.unique(np.linspace(min(first, last), last, _MOST_JOINT).round().astype(int)).tolist()

    def read(rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        held = training.held(rows, blocks=len(layers))
        features = [training.features(layer, where, held) for layer in layers]
        return np.concatenate(features, axis=1), training.harmful[held]

    # As many more features as there are blocks, each allowed as much less.
    linear = fit_logistic(*read(training.fit), inverse_penalty / len(layers))
    features, harmful = read(training.select)
    above, below = linear(features[harmful]), linear(features[~harmful])
    spec = Probe(
        name=name,
        method=f"L2 logistic regression on {len(layers)} blocks at once",
        layers=tuple(layers),
        readout=readout_at(where),
        bias=linear.bias,
        evidence={"selection_auroc": auroc(above, below), "selection_recall": recall_at(above, below, 0.01)},
    )
    weight = linear.weight.astype(np.float32).reshape(len(layers), 1, -1)
    return FittedProbe(spec, torch.from_numpy(weight))


def _middle(num_layers: int) -> list[int]:
    """Return the blocks that `stack` sums."""
    low, high = (depth * num_layers for depth in _STACK_DEPTHS)
    middle = [layer for layer in range(num_layers) if low <= layer + 1 <= high] or list(range(num_layers))
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
