"""Angular steering: the stream is turned towards refusal within one plane, and keeps its norm (arXiv 2510.26243).

The plane is spanned by b1, the normalised difference in means, and b2, the first principal component of the differences
in means of all blocks, orthogonal to b1. `h' = h - P h + |P h| (cos(angle) b1 + sin(angle) b2)`. Which angle means
refusal is found by trying: it is the one under which harmful selection prompts are refused the most. The adaptive
variant turns only rows that already lean towards harm; raw projections have no natural zero, so leaning means more than
99 % of harmless prompts do.
"""

import math

import numpy as np

from calibration.fitting.fitted import FittedSteering
from calibration.methods.steering.conditional import calibrated_gate
from calibration.methods.steering.contrast import SteeringContrast, Streams
from calibration.methods.steering.dose_response import StrengthSweep, served
from calibration.prompts.progress import track

_ANGLES = tuple(math.radians(degrees) for degrees in range(-90, 91, 30))
"""Beyond a right angle from b1 the stream would be turned against refusal."""
_JUDGES = 32


def fit_angular(contrast: SteeringContrast) -> list[FittedSteering]:
    """Return vectors `turn` and `turn_gated`."""
    training = contrast.training
    first, second = plane(contrast.difference, _candidates(contrast))
    trial = StrengthSweep.of(training, contrast.tokens, _JUDGES)

    def refusal(angle: float) -> float:
        return trial.dose(1.0, served(training.chat, _turn(contrast, first, second, angle), 1.0)).refusal_harmful

    gained = {angle: refusal(angle) for angle in track(list(_ANGLES), "finding the angle of refusal")}
    turn = _turn(contrast, first, second, max(gained, key=lambda angle: gained[angle]))
    gate, evidence = calibrated_gate(contrast, first)
    tensors = {name: tensor[0].double().numpy() for name, tensor in turn.tensors.items()}
    gated = contrast.vector(
        "turn_gated", f"{turn.spec.method}, adaptive", tensors | gate, operator="rotate", gate="hard", evidence=evidence
    )
    return [turn, gated]


def plane(difference: Streams, candidates: Streams) -> tuple[Streams, Streams]:
    """Return b1 along `difference` `[D]`, and b2: the first component of `candidates` `[C, D]` across it.

    Orthonormal.
    """
    first = difference / np.linalg.norm(difference)
    across = candidates - np.outer(candidates @ first, first)
    second = np.linalg.svd(across, full_matrices=False)[2][0]
    second = second - (second @ first) * first
    return first, np.asarray(second / np.linalg.norm(second))


def _candidates(contrast: SteeringContrast) -> Streams:
    training = contrast.training
    features = (training.features(layer, 0).astype(np.float64) for layer in range(training.chat.num_layers))
    return np.stack([each[contrast.refused].mean(axis=0) - each[contrast.answered].mean(axis=0) for each in features])


def _turn(contrast: SteeringContrast, first: Streams, second: Streams, angle: float) -> FittedSteering:
    tensors = {"first": first, "second": second, "angle": np.array([angle])}
    method = f"rotation to {math.degrees(angle):.0f} degrees"
    return contrast.vector("turn", method, tensors, operator="rotate", evidence={"degrees": math.degrees(angle)})
