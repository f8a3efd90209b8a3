"""Steering operators: what may be done to rows of the residual stream, defined once for calibration and for serving.

With h a row `[D]`, c its strength (0 is the identity) and every tensor a row of its own, an operator gives the
displacement that is added to h. `displace` takes the stream `[T, D]` and strengths `[T, 1]`, float32, and then the
operator's tensors in the order of `shapes`. It works on PyTorch tensors and does not import torch: deciding needs
none.
"""

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]


class Operator(Protocol):
    """One kind of operator."""

    reads: bool
    """Whether the displacement depends on the stream."""

    def shapes(self, blocks: int, hidden_size: int, rank: int) -> Shapes:
        """Return the names and shapes of its tensors, a row of each for every block."""
        ...

    def displace(self, stream: "torch.Tensor", strength: "torch.Tensor", *tensors: "torch.Tensor") -> "torch.Tensor":
        """Return what is added to the stream `[T, D]`."""
        ...


class Add:
    """`c v`."""

    reads = False

    def shapes(self, blocks: int, hidden_size: int, rank: int) -> Shapes:
        """Return the vector."""
        return {"vector": (blocks, hidden_size)}

    def displace(self, stream: "torch.Tensor", strength: "torch.Tensor", *tensors: "torch.Tensor") -> "torch.Tensor":
        """Return the scaled vector."""
        [vector] = tensors
        return strength * vector


class Affine:
    """`c ((w - 1) h + b)` on the coordinates that lie in their support `[low, high]` (Linear-AcT, arXiv 2410.23054)."""

    reads = True

    def shapes(self, blocks: int, hidden_size: int, rank: int) -> Shapes:
        """Return a scale, a shift and a support for each coordinate."""
        return dict.fromkeys(("scale", "shift", "low", "high"), (blocks, hidden_size))

    def displace(self, stream: "torch.Tensor", strength: "torch.Tensor", *tensors: "torch.Tensor") -> "torch.Tensor":
        """Return the displacement, 0 on coordinates outside their support."""
        scale, shift, low, high = tensors
        moved = strength * ((scale - 1) * stream + shift)
        return moved.where((stream >= low) & (stream <= high), 0.0)


class LowRank:
    """`c (U^T (D h) + b)`: a map whose matrix is the identity plus rank R (MiMiC, arXiv 2402.09631)."""

    reads = True

    def shapes(self, blocks: int, hidden_size: int, rank: int) -> Shapes:
        """Return two matrices `[R, D]` and a shift."""
        return {"down": (blocks, rank, hidden_size), "up": (blocks, rank, hidden_size), "shift": (blocks, hidden_size)}

    def displace(self, stream: "torch.Tensor", strength: "torch.Tensor", *tensors: "torch.Tensor") -> "torch.Tensor":
        """Return the map's displacement."""
        down, up, shift = tensors
        return strength * ((stream @ down.T) @ up + shift)


class Rotate:
    """`R(c (angle - phi)) P h - P h` in the plane of two orthonormal directions, phi the angle of P h there.

    The norm stays, and at c = 1 P h points to `angle` (Angular Steering, arXiv 2510.26243).
    """

    reads = True

    def shapes(self, blocks: int, hidden_size: int, rank: int) -> Shapes:
        """Return the plane's directions, and the angle."""
        row = (blocks, hidden_size)
        return {"first": row, "second": row, "angle": (blocks, 1)}

    def displace(self, stream: "torch.Tensor", strength: "torch.Tensor", *tensors: "torch.Tensor") -> "torch.Tensor":
        """Return the displacement that goes the fraction c, at most all, of the shorter way to the angle."""
        first, second, angle = tensors
        x, y = (stream @ first).unsqueeze(1), (stream @ second).unsqueeze(1)
        way = (angle - y.atan2(x) + math.pi).remainder(2 * math.pi) - math.pi
        turn = strength.clamp(max=1.0) * way
        cos, sin = turn.cos(), turn.sin()
        return (x * (cos - 1) - y * sin) * first + (x * sin + y * (cos - 1)) * second


OPERATORS: dict[str, Operator] = {"add": Add(), "affine": Affine(), "low_rank": LowRank(), "rotate": Rotate()}
"""By `SteeringVector.operator`: those that are served. `ablate`, which measures, takes one vector as `add` does."""
