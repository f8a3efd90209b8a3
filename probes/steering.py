"""Steering: what an artifact's vectors do to rows of the residual stream, for calibration and for serving.

`probes.operators` has the operators. A gate reads z = w . h + b off the same row. `hard` lets the operator act where
z > 0 (CAST, arXiv 2409.05907); `soft` makes the strength c max(z, 0), so that `add` under it is the rank-one map of
AlphaSteer (arXiv 2506.07022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.manifest import Gate, Manifest, SteeringVector
from probes.operators import OPERATORS

_PLANE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Move:
    """One vector on one block: its column of strengths, what it does, and its tensors, the gate's two last."""

    column: int
    operator: str
    gate: Gate | None
    tensors: tuple[torch.Tensor, ...]

    @property
    def reads(self) -> bool:
        """Whether the displacement depends on the stream."""
        return OPERATORS[self.operator].reads or self.gate is not None


def displacement(stream: torch.Tensor, strengths: torch.Tensor, moves: Sequence[Move]) -> torch.Tensor:
    """Return what `moves` add to the rows of `stream` `[T, D]`, float32, at `strengths` `[T, S]`; each reads the same
    stream.

    A row whose strengths are all zero gets zeros, whatever it holds.
    """
    exact, total = stream.float(), torch.zeros(stream.shape, dtype=torch.float32, device=stream.device)
    for move in moves:
        own, gate = (move.tensors[:-2], move.tensors[-2:]) if move.gate else (move.tensors, ())
        strength = _gated(exact, strengths[:, move.column].unsqueeze(1), move.gate, gate)
        moved = OPERATORS[move.operator].displace(exact, strength, *own)
        # Zero times infinity is NaN, so a row that is not steered is left out and not multiplied out.
        total = total + torch.where(strength != 0, moved, 0.0)
    return total


def _gated(
    stream: torch.Tensor, strength: torch.Tensor, gate: Gate | None, tensors: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    if gate is None:
        return strength
    weight, bias = tensors
    reading = (stream @ weight).unsqueeze(1) + bias
    # Never below zero: a gate may let less through, and never turns a vector round.
    opened = (reading > 0).float() if gate == "hard" else reading.clamp(min=0.0)
    return torch.where(strength != 0, strength * opened, 0.0)


def moves_of(spec: SteeringVector, tensors: dict[str, torch.Tensor], column: int = 0) -> dict[int, Move]:
    """Return a vector's move by block; `tensors` are named as in `SteeringVector.shapes`. Raises `ArtifactError`."""
    require_servable(spec)
    _require_plane(spec, tensors)
    order = spec.shapes(0)
    return {
        layer: Move(column, spec.operator, spec.gate, tuple(tensors[name][index] for name in order))
        for index, layer in enumerate(spec.layers)
    }


def require_servable(spec: SteeringVector) -> None:
    """Raise `ArtifactError` for what takes something out of a model: ablation is measured offline and never served."""
    if spec.operator == "ablate" or spec.evaluation_only:
        what = "takes a direction out of the model" if spec.operator == "ablate" else "is marked as evaluation_only"
        raise ArtifactError(
            f"{what}; such vectors are for measuring, and no server runs them",
            field=f"steering.{spec.name}.operator",
            remedy="leave the vector out of the artifact: calibrate again, which never writes one",
        )


def require_servable_steering(manifest: Manifest) -> None:
    """Raise `ArtifactError` when any of an artifact's vectors must not be served."""
    for vector in manifest.steering:
        require_servable(vector)


def _require_plane(spec: SteeringVector, tensors: dict[str, torch.Tensor]) -> None:
    if spec.operator != "rotate":
        return
    plane = torch.stack([tensors["first"], tensors["second"]], dim=1)
    if not torch.allclose(plane @ plane.mT, torch.eye(2, device=plane.device), atol=_PLANE_TOLERANCE):
        raise ArtifactError(
            "the two directions of the plane are not orthonormal, so a rotation in it would not keep the norm",
            field=f"steering.{spec.name}.first",
            remedy="fetch the artifact again, or run `foreguard calibrate`",
        )


@dataclass(frozen=True, slots=True)
class SteeringBank:
    """S steering vectors laid out for the sensor: `moves[l]` is all that acts on block l."""

    names: tuple[str, ...]
    moves: dict[int, tuple[Move, ...]]
    schedules: tuple[tuple[float, ...], ...]
    """Per vector: factors of its strength at the answer's first tokens, the last one staying in force."""

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> "SteeringBank":
        """Lay out the artifact's steering vectors. Raises `ArtifactError` for one that must not be served."""
        return cls.side_by_side([artifact])

    @classmethod
    def side_by_side(cls, artifacts: Sequence[Artifact]) -> "SteeringBank":
        """Lay out several artifacts' steering vectors, one artifact's after the other's."""
        moves: dict[int, tuple[Move, ...]] = {}
        steering = [(spec, artifact.tensors) for artifact in artifacts for spec in artifact.manifest.steering]
        for column, (spec, tensors) in enumerate(steering):
            named = {name: tensors[f"steering.{spec.name}.{name}"] for name in spec.shapes(0)}
            for layer, move in moves_of(spec, named, column).items():
                moves[layer] = (*moves.get(layer, ()), move)
        names = tuple(spec.name for spec, _ in steering)
        return cls(names, moves, tuple(spec.schedule or (1.0,) for spec, _ in steering))

    def factors(self, first: int, count: int) -> torch.Tensor:
        """Return the schedules' factors `[count, S]` at the answer's positions from `first` on, 0 the prompt's last."""
        at = range(first, first + count)
        rows = [[each[min(place, len(each) - 1)] for each in self.schedules] for place in at]
        return torch.tensor(rows).reshape(count, len(self.names))
