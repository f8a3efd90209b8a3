"""Logit scale: every probe's score in the same unit, the log-odds of harm on the calibration set.

Platt's map is affine with a positive slope, as is the last step of a probe's score, so it can be folded into the
probe's scale and bias. Thresholds keep their meaning, scores of different probes can be compared and averaged.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from calibration.fitting.fitted import FittedProbe
from calibration.fitting.platt import fit_platt
from calibration.fitting.training_set import Rows
from probes.manifest import Platt

_IDENTITY = Platt(slope=1.0, intercept=0.0)


def fit_maps(
    scores: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_], judged: Sequence[Rows] | None = None
) -> list[Platt]:
    """Return for each column of `scores` `[N, K]` Platt's map to probabilities.

    It is fitted on the column's `judged` rows, or on all.
    """
    rows = judged or [np.arange(len(scores))] * scores.shape[1]
    return [fit_platt(scores[own, column], harmful[own]) for column, own in enumerate(rows)]


def logit_maps(fitted: Sequence[Platt]) -> list[Platt]:
    """Return the maps to log-odds; the identity for a probe that points the wrong way."""
    return [platt if platt.slope > 0 else _IDENTITY for platt in fitted]


def maps_from_logits(fitted: Sequence[Platt]) -> list[Platt]:
    """Return the maps to probabilities of scores that `logit_maps` were applied to."""
    return [platt.model_copy(update={"slope": 1.0, "intercept": 0.0}) if platt.slope > 0 else platt for platt in fitted]


def fold(probes: Sequence[FittedProbe], maps: Sequence[Platt]) -> tuple[FittedProbe, ...]:
    """Return the probes with each map folded into scale and bias."""
    return tuple(_fold(probe, platt) for probe, platt in zip(probes, maps, strict=True))


def apply(maps: Sequence[Platt], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return `scores` `[N, K']` with the maps applied to its first columns; the rest stay."""
    mapped = scores.copy()
    for column, platt in enumerate(maps):
        mapped[:, column] = platt.slope * scores[:, column] + platt.intercept
    return mapped


def _fold(probe: FittedProbe, platt: Platt) -> FittedProbe:
    spec = probe.spec
    folded = {"scale": platt.slope * spec.scale, "bias": platt.slope * spec.bias + platt.intercept}
    return replace(probe, spec=spec.model_copy(update=folded))
