"""Difference-in-means directions, and how a direction becomes a probe whose score reads as a logit."""

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.fitted import FittedProbe
from probes.errors import CalibrationError
from probes.manifest import Probe
from probes.readout import Readout

Features = npt.NDArray[np.float32]


def difference_in_means(features: Features, harmful: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return `mean(harmful) - mean(harmless)` of features `[N, D]`, accumulated in float64."""
    on_harmful = features[harmful].mean(axis=0, dtype=np.float64)
    return np.asarray(on_harmful - features[~harmful].mean(axis=0, dtype=np.float64))


def direction_probe(
    name: str,
    method: str,
    direction: npt.NDArray[np.float64],
    projection: npt.NDArray[np.float64],
    harmful: npt.NDArray[np.bool_],
    *,
    layer: int,
    offset: int,
    evidence: dict[str, float],
) -> FittedProbe:
    """Return the probe that scores the projection on `direction` `[D]`, centred and scaled to a log-likelihood ratio.

    With projections normal in both classes and of equal variance, the ratio is `(z - midpoint) * gap / variance`; the
    `projection` `[N]` of prompts on the unit direction and their labels `[N]` give those numbers. Signed: harmful
    prompts score higher.
    """
    unit = direction / np.linalg.norm(direction)
    above, below = projection[harmful], projection[~harmful]
    gap = float(above.mean() - below.mean())
    variance = float(above.var() * len(above) + below.var() * len(below)) / len(projection)
    if gap <= 0 or variance <= 0:
        raise CalibrationError(
            f"block {layer} does not separate harmful from harmless prompts at all",
            field=name,
            remedy="check the labels, and that the model is the trained one",
        )
    slope = gap / variance
    midpoint = float(above.mean() + below.mean()) / 2
    spec = Probe(
        name=name,
        method=method,
        layers=(layer,),
        readout=Readout(kind="last", offset=offset),
        bias=-slope * midpoint,
        evidence=evidence,
    )
    return FittedProbe(spec, torch.from_numpy((unit * slope).astype(np.float32))[None, None])
