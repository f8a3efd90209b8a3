"""Linear-AcT: each coordinate gets the straight line that carries what is answered onto what is refused (arXiv
2410.23054).

One-dimensional optimal transport matches sorted samples, so with a and b sorted and centred, `w = sum(a b) / sum(a a)`
and `T(x) = w (x - mean(a)) + mean(b)`. `T` is applied where x lies in the range that the source was seen in. The paper
fits layer after layer, each on streams that the maps before it have changed; here one block is steered, so there is
none before.
"""

import numpy as np

from calibration.fitting.fitted import FittedSteering
from calibration.methods.steering.contrast import SteeringContrast, Streams


def fit_linear_act(contrast: SteeringContrast) -> list[FittedSteering]:
    """Return vector `linear_act`."""
    source, target = contrast.streams(contrast.answered), contrast.streams(contrast.refused)
    scale, shift = sorted_regression(source, target)
    tensors = {"scale": scale, "shift": shift, "low": source.min(axis=0), "high": source.max(axis=0)}
    return [contrast.vector("linear_act", "sorted samples matched per coordinate", tensors, operator="affine")]


def sorted_regression(source: Streams, target: Streams) -> tuple[Streams, Streams]:
    """Return slope and intercept `[D]` of the lines that carry samples `[N, D]` onto samples `[M, D]`, sorted against
    sorted.

    Where N and M differ, both are read at the quantiles of the smaller. A coordinate that never varies is only shifted.
    """
    count = min(len(source), len(target))
    levels = (np.arange(count) + 0.5) / count
    ours, theirs = (np.quantile(each, levels, axis=0, method="hazen") for each in (source, target))
    centred = ours - ours.mean(axis=0)
    spread = (centred**2).sum(axis=0)
    flat = spread == 0
    scale = (centred * (theirs - theirs.mean(axis=0))).sum(axis=0) / np.where(flat, 1.0, spread)
    scale = np.where(flat, 1.0, scale)
    return scale, theirs.mean(axis=0) - scale * ours.mean(axis=0)
