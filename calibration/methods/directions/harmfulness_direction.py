"""The harmfulness direction: what the model knows of a request before it decides whether to refuse.

Difference in means at the instruction's last token (arXiv 2507.11878), where harmfulness is encoded apart from refusal.
Small models may gather what was said only in the template that follows, so its positions compete too, save the last:
that one is refusal's.
"""

import numpy as np
import numpy.typing as npt

from calibration.fitting.choosing import CrossValidation
from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.training_set import TrainingSet
from calibration.methods.directions.directions import difference_in_means, direction_probe

_MARGIN = 0.02
"""AUROC by which a template position must beat the instruction's last token to be read instead."""


def fit_harmfulness_direction(training: TrainingSet) -> Fitted:
    """Return probe `harmfulness` at the block and position that separate best, by AUROC on sources left out of the
    fit.
    """
    cross_validation = CrossValidation.of(training)
    offsets = range(training.instruction_offset, 0, -1)
    layers = range(training.chat.num_layers)
    candidates = [_candidate(cross_validation, layer, offset) for offset in offsets for layer in layers]
    return Fitted(probes=(_choose(candidates, training.instruction_offset),))


def _candidate(cross_validation: CrossValidation, layer: int, offset: int) -> FittedProbe:
    training = cross_validation.training
    harmless, harmful = training.moments(layer, offset, training.fit)
    direction = harmful.mean - harmless.mean
    projection = training.project(layer, offset, direction)[training.fit]
    judged = cross_validation.judge(cross_validation.logits(_along_the_means, layer, offset))
    return direction_probe(
        "harmfulness",
        "difference in means before the last position",
        direction,
        projection / np.linalg.norm(direction),
        training.harmful[training.fit],
        layer=layer,
        offset=offset,
        evidence={"selection_auroc": judged.auroc},
    )


def _along_the_means(features: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_]) -> Linear:
    return Linear(difference_in_means(features, harmful), 0.0)


def _choose(candidates: list[FittedProbe], instruction_offset: int) -> FittedProbe:
    at_instruction = [probe for probe in candidates if probe.spec.readout.offset == instruction_offset]
    best, ours = max(candidates, key=_auroc), max(at_instruction, key=_auroc)
    chosen = best if _auroc(best) > _auroc(ours) + _MARGIN else ours
    evidence = chosen.spec.evidence | {"instruction_auroc": _auroc(ours)}
    return FittedProbe(chosen.spec.model_copy(update={"evidence": evidence}), chosen.weight)


def _auroc(probe: FittedProbe) -> float:
    return probe.spec.evidence["selection_auroc"]


METHOD = Method("harmfulness_direction", fit_harmfulness_direction, rank=20, plain=True, refits=True)
