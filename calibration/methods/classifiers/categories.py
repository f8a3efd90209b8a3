"""Probes by kind of harm: one for each category that enough harmful training prompts name.

Each is a logistic regression on the mean over the content, of its category's harmful prompts against all others,
harmless or not, so that it says which harm it is and not only that there is some. All of them read the block that tells
categories apart best. A policy can then treat kinds of harm differently, each by a threshold of its own.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc
from calibration.fitting.training_set import TrainingSet
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.prompts.progress import track
from calibration.recording.places import readout_at
from probes.manifest import Probe

_FEWEST = 30
"""Harmful training prompts of a category."""
_MOST = 24
"""Categories, the most frequent first."""
_MOST_BLOCKS = 10
"""Blocks that are compared, evenly over the depth."""
_INVERSE_PENALTY = 0.03
"""scikit-learn's C for standardised features, as classifiers choose their places by."""


def fit_categories(training: TrainingSet) -> Fitted:
    """Return probes `category_<name>`; none, and a note, where no category has enough harmful training prompts."""
    names = np.array([prompt.category or "" for prompt in training.prompts.prompts])
    names[~training.harmful] = ""
    counts = Counter(names[np.concatenate([training.fit, training.select])].tolist())
    frequent = [name for name, count in counts.most_common() if name and count >= _FEWEST][:_MOST]
    if not frequent:
        return Fitted(
            notes=(f"no category is named by {_FEWEST} harmful training prompts: there are no probes by kind",)
        )
    even = np.linspace(0, training.chat.num_layers - 1, min(_MOST_BLOCKS, training.chat.num_layers))
    blocks = np.unique(even.round().astype(int)).tolist()
    areas = {layer: _area(training, layer, names, frequent) for layer in track(blocks, "telling categories apart")}
    layer = max(areas, key=lambda each: areas[each])
    rows = training.held(np.sort(np.concatenate([training.fit, training.select])))
    features = training.features(layer, "content", rows)
    return Fitted(
        probes=tuple(
            _probe(name, slug, layer, _one_against_all(features, names[rows] == name), areas[layer])
            for name, slug in zip(frequent, _slugs(frequent), strict=True)
        )
    )


def _area(training: TrainingSet, layer: int, names: npt.NDArray[np.str_], frequent: Sequence[str]) -> float:
    """Return how well a block tells kinds of harm apart: the mean AUROC on harmful selection prompts."""
    rows = training.held(training.fit)
    features, select = (training.features(layer, "content", each) for each in (rows, training.select))
    harmful = training.harmful[training.select]
    found = []
    for name in frequent:
        own = names[training.select] == name
        if own.any() and (harmful & ~own).any():
            logits = _one_against_all(features, names[rows] == name)(select)
            found.append(auroc(logits[own], logits[harmful & ~own]))
    return float(np.mean(found)) if found else 0.5


def _one_against_all(features: npt.NDArray[np.float32], own: npt.NDArray[np.bool_]) -> Linear:
    return fit_logistic(features, own, _INVERSE_PENALTY)


def _slugs(names: Sequence[str]) -> list[str]:
    """Return names as probes may have them, no two alike."""
    slugs: list[str] = []
    for name in names:
        plain = "category_" + (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:45] or "other")
        alike = sum(re.fullmatch(rf"{plain}(_\d+)?", slug) is not None for slug in slugs)
        slugs.append(f"{plain}_{alike + 1}" if alike else plain)
    return slugs


def _probe(name: str, slug: str, layer: int, linear: Linear, area: float) -> FittedProbe:
    spec = Probe(
        name=slug,
        method=f"L2 logistic regression on the mean of the content, {name} against all others",
        category=name,
        layers=(layer,),
        readout=readout_at("content"),
        bias=linear.bias,
        evidence={"selection_auroc_among_harmful": area},
    )
    return FittedProbe(spec, torch.from_numpy(linear.weight.astype(np.float32))[None, None])


METHOD = Method("categories", fit_categories, rank=47)
