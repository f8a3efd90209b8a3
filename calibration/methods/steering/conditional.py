"""Conditional steering: a vector that is added only where a signed reading of the same stream says so.

CAST (arXiv 2409.05907) takes both vectors as first principal components of pairwise-centred states, signed by the
majority. Its cosine with a rank-one projection cannot tell a direction from its opposite, and reading one mean over the
prompt cannot follow a batch; here the condition is the signed projection of the row that is about to be steered, and
its threshold is the cut that 1 % of harmless selection prompts pass. The request as a whole is the policy's to judge.

`gated` keeps the condition and takes better parts: the difference in means, behind a linear discriminant.
"""

import numpy as np

from calibration.fitting.fitted import FittedSteering
from calibration.fitting.metrics import cut_at, recall_at
from calibration.methods.classifiers.discriminant import fit_lda_held
from calibration.methods.steering.additive import StreamPairs
from calibration.methods.steering.contrast import SteeringContrast, Streams

FALSE_POSITIVE_RATE = 0.01
_ROUNDING = 1e-5
_SEED = 20_260


def fit_conditional(contrast: SteeringContrast, pairs: StreamPairs) -> list[FittedSteering]:
    """Return vectors `cast` and `gated`, both behind a hard gate."""
    training = contrast.training
    behaviour = pairwise_component(pairs.refused, pairs.answered)
    harmful, harmless = (contrast.labelled(training.fit, harmful=label) for label in (True, False))
    count, rng = min(len(harmful), len(harmless)), np.random.default_rng(_SEED)
    condition = pairwise_component(rng.permutation(harmful)[:count], rng.permutation(harmless)[:count])
    gap = float(((pairs.refused - pairs.answered) @ behaviour).mean())
    rows = training.held(training.fit)
    discriminant = fit_lda_held(training.features(contrast.layer, 0, rows), training.harmful[rows]).weight
    return [
        _behind(contrast, "cast", "principal components of pairs", gap * behaviour, condition),
        _behind(
            contrast, "gated", "difference in means behind a linear discriminant", contrast.difference, discriminant
        ),
    ]


def pairwise_component(positive: Streams, negative: Streams) -> Streams:
    """Return the unit first principal component `[D]` of states `[N, D]`, each pair centred on its own mean.

    Signed so that most pairs have their positive member on its positive side.
    """
    half = (positive - negative) / 2
    # Pair by pair the centred states are +half and -half, so their covariance is that of `half` about zero.
    component = np.linalg.svd(half, full_matrices=False)[2][0]
    return np.asarray(component if (half @ component > 0).mean() >= 0.5 else -component)


def calibrated_gate(contrast: SteeringContrast, direction: Streams) -> tuple[dict[str, Streams], dict[str, float]]:
    """Return a gate that 1 % of harmless selection prompts open, and what share of harmful ones does."""
    unit = direction / np.linalg.norm(direction)
    training = contrast.training
    above, below = (contrast.labelled(training.select, harmful=label) @ unit for label in (True, False))
    # The prompt at the cut must stay below it in the server's float32, too.
    cut = cut_at(below, FALSE_POSITIVE_RATE) + _ROUNDING * float(np.abs(below).max())
    evidence = {
        "gate_recall": recall_at(above, below, FALSE_POSITIVE_RATE),
        "gate_harmless": float((below > cut).mean()),
    }
    return {"gate_weight": unit, "gate_bias": np.array([-cut])}, evidence


def _behind(contrast: SteeringContrast, name: str, method: str, vector: Streams, condition: Streams) -> FittedSteering:
    gate, evidence = calibrated_gate(contrast, condition)
    return contrast.vector(name, method, {"vector": vector, **gate}, gate="hard", evidence=evidence)
