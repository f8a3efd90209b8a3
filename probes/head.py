"""Heads: how the values that a readout gives become the request's one score, on arrays and as a graph for gradients.

The tap in the model is linear; whatever is not stands here, and runs once a prompt on a handful of numbers. `outputs`
takes values `[..., V]` and returns `[...]`, in float64; `graph` does so for one prompt's `[V]` on PyTorch tensors.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from probes.pooling import Values

if TYPE_CHECKING:
    import torch

HeadKind = Literal["sum", "mlp", "mahalanobis"]
HeadTensors = Mapping[str, npt.NDArray[np.floating]]
Shapes = dict[str, tuple[int, ...]]


class Head(Protocol):
    """One kind of head."""

    def shapes(self, num_values: int) -> Shapes:
        """Return the names and shapes of the tensors that it needs for V values."""
        ...

    def outputs(self, values: Values, tensors: HeadTensors) -> Values:
        """Return the outputs `[...]` of values `[..., V]`."""
        ...

    def graph(self, values: "torch.Tensor", tensors: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return the output `[]` of values `[V]`, so that gradients pass."""
        ...


class Sum:
    """The sum of the values."""

    def shapes(self, num_values: int) -> Shapes:
        """Return none: it has no tensors."""
        return {}

    def outputs(self, values: Values, tensors: HeadTensors) -> Values:
        """Return the sums."""
        return np.asarray(values.sum(axis=-1))

    def graph(self, values: "torch.Tensor", tensors: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return the sum."""
        return values.sum()


class Mlp:
    """`head_weight . max(v + head_bias, 0)`.

    The values are the pre-activations of a layer of V hidden units, less its bias; the probe's own bias is the
    output's.
    """

    def shapes(self, num_values: int) -> Shapes:
        """Return a bias and a weight for each hidden unit."""
        return {"head_bias": (num_values,), "head_weight": (num_values,)}

    def outputs(self, values: Values, tensors: HeadTensors) -> Values:
        """Return the output unit's values."""
        exact = _exact(tensors)
        return np.asarray(np.maximum(values + exact["head_bias"], 0) @ exact["head_weight"])

    def graph(self, values: "torch.Tensor", tensors: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return the output unit's value."""
        return (values + tensors["head_bias"]).relu() @ tensors["head_weight"]


class Mahalanobis:
    """The relative Mahalanobis distance (arXiv 2106.09022) from benign prompts.

    The values are a projection z of the hidden state. With benign mean m and precision A, and mean n and precision B
    of all text, it is `(z - m)' A (z - m) - (z - n)' B (z - n)`: larger is further from benign than from text in
    general. A zero B leaves the plain squared distance. No centring: the means are means of projections.
    """

    def shapes(self, num_values: int) -> Shapes:
        """Return two means and two precisions."""
        vector, matrix = (num_values,), (num_values, num_values)
        return {
            "head_mean": vector,
            "head_precision": matrix,
            "head_background_mean": vector,
            "head_background_precision": matrix,
        }

    def outputs(self, values: Values, tensors: HeadTensors) -> Values:
        """Return the distances."""
        exact = _exact(tensors)
        from_benign = _square(values - exact["head_mean"], exact["head_precision"])
        return from_benign - _square(values - exact["head_background_mean"], exact["head_background_precision"])

    def graph(self, values: "torch.Tensor", tensors: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Return the distance."""
        near, far = values - tensors["head_mean"], values - tensors["head_background_mean"]
        return near @ tensors["head_precision"] @ near - far @ tensors["head_background_precision"] @ far


HEADS: dict[HeadKind, Head] = {"sum": Sum(), "mlp": Mlp(), "mahalanobis": Mahalanobis()}
"""By `Probe.head`."""


def _exact(tensors: HeadTensors) -> dict[str, Values]:
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


def _square(offset: Values, precision: Values) -> Values:
    return np.asarray(((offset @ precision) * offset).sum(axis=-1))
