"""The refusal readout: the log-odds that the answer begins as a refusal, read off the last block by a linear probe.

What "refusal tokens" give (arXiv 2412.06748), without retraining: the model's own judgement, at the price of a
projection and in a form that combines with other probes. It is fitted to the model's log-odds and not to labels, so it
knows no more of harm than the model does.
"""

import numpy as np
import torch
from sklearn.linear_model import RidgeCV

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.model.refusal_metric import refusal_metrics
from probes.manifest import Probe

_MOST = 1000
"""Prompts per class to fit on; as many more to judge by at most."""
_PENALTIES = np.logspace(0, 4, 9)
"""Ridge penalties on standardised features, chosen by leaving one prompt out."""


def fit_refusal_readout(training: TrainingSet) -> Fitted:
    """Return probe `refusal_readout`, with the share of variance that it explains on selection prompts; or a note."""
    tokens = training.refusal_tokens
    if not tokens:
        return Fitted(notes=("no refusal readout: the model has no refusal tokens",))
    layer, fit, select = (
        training.chat.num_layers - 1,
        *(_both(training, rows) for rows in (training.fit, training.select)),
    )
    features, judged = (training.features(layer, 0, rows).astype(np.float64) for rows in (fit, select))
    targets, expected = (
        refusal_metrics(training.chat, training.prompts.subset(rows), tokens) for rows in (fit, select)
    )
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0
    model = RidgeCV(alphas=_PENALTIES).fit((features - mean) / scale, targets)
    weight = model.coef_ / scale
    bias = float(model.intercept_ - mean @ weight)
    left = np.square(expected - judged @ weight - bias).sum() / np.square(expected - expected.mean()).sum()
    spec = Probe(
        name="refusal_readout",
        method="ridge regression on the log-odds of a first refusal token",
        layers=(layer,),
        bias=bias,
        evidence={"selection_r2": float(1 - left)},
    )
    return Fitted(probes=(FittedProbe(spec, torch.from_numpy(weight.astype(np.float32))[None, None]),))


def _both(training: TrainingSet, rows: Rows) -> Rows:
    return np.sort(np.concatenate([training.sample(rows, harmful=label, most=_MOST) for label in (False, True)]))


METHOD = Method("refusal_readout", fit_refusal_readout, rank=70, refits=True)
