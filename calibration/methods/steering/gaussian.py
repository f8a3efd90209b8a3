"""Maps between Gaussians: the mean alone, or mean and covariance (MiMiC, arXiv 2402.09631).

Of all maps that carry N(m, S) onto N(n, T), `A (h - m) + n` with `A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2` moves
activations the least in mean square. A full `A` is D numbers times D a block and a matrix product a token, too large to
serve, so it is served as the identity plus rank R: the R that lie nearest to `A - I` in mean square over the source, by
Eckart and Young. With R = 0 it is mean matching, which is an addition.
"""

import numpy as np
from sklearn.covariance import ledoit_wolf

from calibration.fitting.fitted import FittedSteering
from calibration.methods.steering.contrast import SteeringContrast, Streams

RANK = 8
_FLOOR = 1e-8
"""Least eigenvalue of a covariance, as a share of its greatest."""


def fit_gaussian(contrast: SteeringContrast) -> list[FittedSteering]:
    """Return vectors `mean_match` and `gaussian`."""
    source, target = contrast.streams(contrast.answered), contrast.streams(contrast.refused)
    means = source.mean(axis=0), target.mean(axis=0)
    covariances = ledoit_wolf(source)[0], ledoit_wolf(target)[0]
    matrix = transport(*covariances) - np.eye(len(means[0]))
    down, up, kept = nearest_of_rank(matrix, covariances[0], min(RANK, len(matrix)))
    tensors = {"down": down, "up": up, "shift": means[1] - means[0] - up.T @ (down @ means[0])}
    return [
        contrast.vector("mean_match", "mean of answered to mean of refused", {"vector": means[1] - means[0]}),
        contrast.vector(
            "gaussian",
            f"Gaussian transport, identity plus rank {len(down)}",
            tensors,
            operator="low_rank",
            rank=len(down),
            evidence={"share_of_map": kept},
        ),
    ]


def transport(source: Streams, target: Streams) -> Streams:
    """Return the matrix `[D, D]` of the optimal map between centred Gaussians with these covariances `[D, D]`."""
    root, inverse = _root(source)
    return np.asarray(inverse @ _root(root @ target @ root)[0] @ inverse)


def nearest_of_rank(matrix: Streams, covariance: Streams, rank: int) -> tuple[Streams, Streams, float]:
    """Return `down` and `up` `[R, D]` that make `E |matrix x - up^T down x|^2` least for x of that covariance.

    Third comes the share of `E |matrix x|^2` that they keep.
    """
    root, inverse = _root(covariance)
    left, sizes, right = np.linalg.svd(matrix @ root)
    kept = float((sizes[:rank] ** 2).sum() / max((sizes**2).sum(), np.finfo(float).tiny))
    return right[:rank] @ inverse, (left[:, :rank] * sizes[:rank]).T, kept


def _root(matrix: Streams) -> tuple[Streams, Streams]:
    """Return a covariance's square root and the root's inverse."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    roots = np.sqrt(np.maximum(values, _FLOOR * values[-1]))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
