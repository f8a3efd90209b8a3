"""AlphaSteer: refusal added in proportion to what no benign prompt has (arXiv 2506.07022).

The paper learns `h' = h + c D h`, `D = D~ P`, with P the projector onto the directions in which benign activations have
least energy and `D~ = R H^T P (P H H^T P + alpha P)^+`, where R repeats the refusal vector r for every harmful
activation in H. All columns of R are equal, so `D = r w^T` with `w = (P H H^T P + alpha P)^+ P H 1`: a ridge regression
of 1 on harmful activations within the benign null space. One dot product and one addition a token then do what a D by D
product would, and w is a gate without a threshold. Ours is `r max(w . h, 0)`: a reading below zero would steer away
from refusal.
"""

from dataclasses import dataclass

import numpy as np

from calibration.fitting.fitted import FittedSteering
from calibration.fitting.metrics import auroc, recall_at
from calibration.methods.steering.contrast import SteeringContrast, Streams

_SHARES = (0.3, 0.5, 0.7, 0.9)
"""Of the D directions, how many count as null: tried in turn."""
_RIDGE = 0.01
"""Share of the mean energy of harmful activations in the null space."""


@dataclass(frozen=True, slots=True)
class _Gate:
    weight: Streams
    share: float
    recall: float
    auroc: float


def fit_null_space(contrast: SteeringContrast) -> list[FittedSteering]:
    """Return vector `alpha`, whose soft gate is the null-space regression that tells selection prompts apart best."""
    fit = contrast.training.fit
    harmful, harmless = (contrast.labelled(fit, harmful=label) for label in (True, False))
    best = max(
        (_try(contrast, harmful, harmless, share) for share in _SHARES), key=lambda gate: (gate.recall, gate.auroc)
    )
    tensors = {"vector": contrast.difference, "gate_weight": best.weight, "gate_bias": np.zeros(1)}
    evidence = {"null_share": best.share, "gate_recall": best.recall, "gate_auroc": best.auroc}
    return [
        contrast.vector(
            "alpha", "refusal times a regression in the benign null space", tensors, gate="soft", evidence=evidence
        )
    ]


def null_projector(harmless: Streams, share: float) -> Streams:
    """Return the projector `[D, D]` onto that share of directions in which rows `[N, D]` have least energy."""
    _, vectors = np.linalg.eigh(harmless.T @ harmless)
    least = vectors[:, : max(round(share * vectors.shape[1]), 1)]
    return np.asarray(least @ least.T)


def gate_weight(harmful: Streams, projector: Streams, ridge: float) -> Streams:
    """Return w `[D]`: the ridge regression of 1 on rows `[N, D]`, within the projector's range."""
    inside = harmful @ projector
    return np.asarray(np.linalg.pinv(inside.T @ inside + ridge * projector, hermitian=True) @ inside.sum(axis=0))


def _try(contrast: SteeringContrast, harmful: Streams, harmless: Streams, share: float) -> _Gate:
    projector = null_projector(harmless, share)
    ridge = _RIDGE * float(((harmful @ projector) ** 2).sum()) / max(round(share * len(projector)), 1)
    weight = gate_weight(harmful, projector, ridge)
    above, below = (contrast.labelled(contrast.training.select, harmful=label) @ weight for label in (True, False))
    return _Gate(weight, share, recall_at(above, below, 0.01), auroc(above, below))
