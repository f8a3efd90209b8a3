"""Heads: how the values that a readout gives become the request's one score.

The tap in the model is linear; whatever is not stands here, and runs once a prompt on a handful of numbers.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from probes.readout import Values

HeadKind = Literal["sum", "mlp", "mahalanobis"]
HeadTensors = Mapping[str, npt.NDArray[np.floating]]


def head_shapes(kind: HeadKind, num_values: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that a head of `num_values` values needs, as `apply_head` takes them."""
    vector, matrix = (num_values,), (num_values, num_values)
    if kind == "mlp":
        return {"head_bias": vector, "head_weight": vector}
    if kind == "mahalanobis":
        return {
            "head_mean": vector,
            "head_precision": matrix,
            "head_background_mean": vector,
            "head_background_precision": matrix,
        }
    return {}


def apply_head(kind: HeadKind, values: Values, tensors: HeadTensors) -> Values:
    """Return the heads' outputs `[...]` of values `[..., V]`, in float64.

    `sum`: the sum of the values.

    `mlp`: `head_weight . max(v + head_bias, 0)`. The values are the pre-activations of a layer of V hidden units, less
    its bias; the probe's own bias is the output's.

    `mahalanobis`: the relative Mahalanobis distance (arXiv 2106.09022) from benign prompts. The values are a projection
    z of the hidden state; with benign mean m and precision A, and mean n and precision B of all text, it is
    `(z - m)' A (z - m) - (z - n)' B (z - n)`: larger is further from benign than from text in general. A zero B leaves
    the plain squared distance. No centring: the means are means of projections.
    """
    if kind == "sum":
        return np.asarray(values.sum(axis=-1))
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    if kind == "mlp":
        return np.asarray(np.maximum(values + exact["head_bias"], 0) @ exact["head_weight"])
    from_benign = _square(values - exact["head_mean"], exact["head_precision"])
    return from_benign - _square(values - exact["head_background_mean"], exact["head_background_precision"])


def _square(offset: Values, precision: Values) -> Values:
    return np.asarray(((offset @ precision) * offset).sum(axis=-1))
