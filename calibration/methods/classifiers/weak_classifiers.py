"""Weak classifiers, block by block: how early a request's harm can be read at its last token (arXiv 2406.05644).

A linear support vector machine and a perceptron with one hidden layer, beside the logistic regression and the linear
discriminant of `linear_classifiers`. High accuracy in early blocks is mostly wording: the study shows what words alone
reach beside it.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no annotations

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.classifiers.block_study import BlockScore, block_study
from calibration.methods.classifiers.discriminant import fit_lda_held
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.prompts.progress import track
from probes.head import HEADS
from probes.manifest import Probe

_HIDDEN, _LEARNING_RATE, _PENALTY, _MOST_EPOCHS = 100, 0.01, 0.01, 300
"""The paper's perceptron."""
_INVERSE_PENALTY = 0.01
"""scikit-learn's C for standardised features. With as many dimensions as prompts a larger one memorises."""
_MOST_COMPARED = 1000
"""Fit prompts of each class for the comparison of blocks. The paper has about 100; the probes are fitted on all."""
_SEED = 20_260

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Perceptron:
    """One hidden layer, standardisation folded in: `outer . max(inner x + inner_bias, 0) + bias`."""

    inner: npt.NDArray[np.float64]
    """`[U, D]`."""
    inner_bias: npt.NDArray[np.float64]
    outer: npt.NDArray[np.float64]
    bias: float

    def __call__(self, features: Features) -> npt.NDArray[np.float64]:
        """Return logits `[N]` of features `[N, D]`."""
        tensors = {"head_bias": self.inner_bias, "head_weight": self.outer}
        return HEADS["mlp"].outputs(features.astype(np.float64) @ self.inner.T, tensors) + self.bias


Classifier = Linear | Perceptron


def fit_svm(features: Features, harmful: Labels) -> Linear:
    """Return the linear support vector machine on standardised features, classes weighted equally."""
    exact, mean, scale = _standardised(features)
    model = LinearSVC(C=_INVERSE_PENALTY, class_weight="balanced", dual=False)
    model.fit(exact, harmful)
    weight = model.coef_[0] / scale
    return Linear(weight, float(model.intercept_[0] - mean @ weight))


def fit_perceptron(
    features: Features,
    harmful: Labels,
    hidden: int = _HIDDEN,
    penalty: float = _PENALTY,
    importance: npt.NDArray[np.float64] | float = 1.0,
) -> Perceptron:
    """Return the perceptron, by Adam on standardised features, each multiplied by its `importance` `[D]`."""
    exact, mean, scale = _standardised(features)
    exact, scale = exact * importance, scale / importance
    model = MLPClassifier(
        (hidden,), alpha=penalty, learning_rate_init=_LEARNING_RATE, max_iter=_MOST_EPOCHS, random_state=_SEED
    )
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the paper's 300 epochs are the end, converged or not
        model.fit(exact, harmful)
    inner, outer = model.coefs_
    folded = inner.T / scale
    return Perceptron(folded, model.intercepts_[0] - folded @ mean, outer[:, 0], float(model.intercepts_[1][0]))


def _standardised(
    features: Features,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    exact = features.astype(np.float64)
    mean, scale = exact.mean(axis=0), exact.std(axis=0)
    scale[scale == 0] = 1.0
    return (exact - mean) / scale, mean, scale


KINDS: Mapping[str, Callable[[Features, Labels], Classifier]] = {
    "svm": fit_svm,
    "logistic": fit_logistic,
    "lda": fit_lda_held,
    "mlp": fit_perceptron,
}


def fit_weak_classifiers(training: TrainingSet) -> Fitted:
    """Return probes `svm` and `mlp` at the last token of the block that each reads best, and the study of all
    blocks.
    """
    sides = [training.sample(training.fit, harmful=label, most=_MOST_COMPARED) for label in (False, True)]
    compared = np.sort(np.concatenate(sides))
    marks: dict[str, list[BlockScore]] = {kind: [] for kind in KINDS}
    for layer in track(range(training.chat.num_layers), "weak classifiers, block by block"):
        for kind, found in _read_block(training, layer, compared).items():
            marks[kind].append(found)
    return Fitted(
        probes=tuple(_probe(training, kind, marks[kind]) for kind in ("svm", "mlp")),
        studies=(block_study(training, marks, len(compared)),),
    )


def _read_block(training: TrainingSet, layer: int, compared: Rows) -> dict[str, BlockScore]:
    features = training.features(layer, 0)
    fitted = {kind: fit(features[compared], training.harmful[compared]) for kind, fit in KINDS.items()}
    select, harmful = features[training.select], training.harmful[training.select]
    return {kind: _mark(classifier(select), harmful) for kind, classifier in fitted.items()}


def _mark(logits: npt.NDArray[np.float64], harmful: Labels) -> BlockScore:
    above, below = logits[harmful], logits[~harmful]
    accuracy = ((above > 0).mean() + (below <= 0).mean()) / 2
    return BlockScore(float(accuracy), auroc(above, below), recall_at(above, below, 0.01))


def _probe(training: TrainingSet, kind: str, marks: list[BlockScore]) -> FittedProbe:
    """Fit the kind anew, on all fit prompts, where it read best by recall at 1 % false positives, then AUROC."""
    layer = max(range(len(marks)), key=lambda each: (marks[each].recall, marks[each].auroc))
    features = training.features(layer, 0)
    fitted = KINDS[kind](features[training.fit], training.harmful[training.fit])
    mark = _mark(fitted(features[training.select]), training.harmful[training.select])
    evidence = {"selection_auroc": mark.auroc, "selection_recall": mark.recall}
    if isinstance(fitted, Linear):
        spec = Probe(
            name=kind, method="linear support vector machine", layers=(layer,), bias=fitted.bias, evidence=evidence
        )
        return _fitted(spec, fitted.weight[None, None], {})
    spec = Probe(
        name=kind,
        method=f"perceptron with {_HIDDEN} hidden units",
        layers=(layer,),
        channels=_HIDDEN,
        head="mlp",
        bias=fitted.bias,
        evidence=evidence,
    )
    return _fitted(spec, fitted.inner[None], {"head_bias": fitted.inner_bias, "head_weight": fitted.outer})


def _fitted(spec: Probe, weight: npt.NDArray[np.float64], head: Mapping[str, npt.NDArray[np.float64]]) -> FittedProbe:
    return FittedProbe(
        spec,
        torch.from_numpy(weight.astype(np.float32)),
        {name: torch.from_numpy(each.astype(np.float32)) for name, each in head.items()},
    )


METHOD = Method("weak_classifiers", fit_weak_classifiers, rank=40)
