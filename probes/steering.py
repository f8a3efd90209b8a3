"""Steering vectors, laid out for the sensor: what is added to the residual stream of which block."""

from dataclasses import dataclass

import torch

from probes.artifact import Artifact


@dataclass(frozen=True, slots=True)
class SteeringBank:
    """S steering vectors: `vectors[l]` is float32 `[S, D]`, with zero rows for vectors that do not act on block l.

    A token with coefficients `c` `[S]` gets `c @ vectors[l]` added after block l; a coefficient is a strength in units of
    the vector's own norm.
    """

    names: tuple[str, ...]
    vectors: dict[int, torch.Tensor]

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "SteeringBank":
        """Lay out the artifact's steering vectors."""
        steering = artifact.manifest.steering
        vectors: dict[int, torch.Tensor] = {}
        for row, vector in enumerate(steering):
            tensor = artifact.tensors[f"steering.{vector.name}.vector"]
            for index, layer in enumerate(vector.layers):
                block = vectors.setdefault(layer, torch.zeros(len(steering), tensor.shape[1]))
                block[row] = tensor[index]
        return cls(tuple(vector.name for vector in steering), vectors)
