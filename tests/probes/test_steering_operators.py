"""Every steering operator against its formula in NumPy, and the properties that it is chosen for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.steering import Move, displacement

HIDDEN = 12
SEEDS = st.integers(0, 999)


def normal(seed, *shape):
    """A seeded normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def displaced(stream, strength, operator, gate, *tensors):
    """One operator at one strength on every row."""
    strengths = torch.full((len(stream), 1), float(strength))
    return displacement(stream, strengths, [Move(0, operator, gate, tensors)])


def plane(seed):
    """Two orthonormal directions."""
    basis = torch.linalg.qr(normal(seed, HIDDEN, 2)).Q
    return basis[:, 0].contiguous(), basis[:, 1].contiguous()


@settings(max_examples=30)
@given(seed=SEEDS, strength=st.floats(0.1, 4))
def test_affine_and_low_rank_are_their_matrices(seed, strength):
    """Between `low` and `high`, affine is `diag(w) h + b` at strength 1; low rank is `(I + U^T D) h + b`, in
    float64.
    """
    stream, scale, shift = normal(seed, 5, HIDDEN), normal(seed + 1, HIDDEN), normal(seed + 2, HIDDEN)
    low, high = torch.full((HIDDEN,), -0.8), torch.full((HIDDEN,), 1.1)
    h = stream.double().numpy()
    inside = (h >= -0.8) & (h <= 1.1)
    mapped = np.where(inside, h @ np.diag(scale.double().numpy()) + shift.double().numpy() - h, 0)
    found = displaced(stream, strength, "affine", None, scale, shift, low, high)
    np.testing.assert_allclose(found.numpy(), strength * mapped, rtol=1e-4, atol=1e-4)
    down, up = normal(seed + 3, 3, HIDDEN), normal(seed + 4, 3, HIDDEN)
    matrix = up.double().numpy().T @ down.double().numpy()
    found = displaced(stream, strength, "low_rank", None, down, up, shift)
    np.testing.assert_allclose(found.numpy(), strength * (h @ matrix.T + shift.double().numpy()), rtol=1e-4, atol=1e-3)


@settings(max_examples=50)
@given(seed=SEEDS, angle=st.floats(-7, 7), strength=st.floats(0, 3))
def test_rotation_keeps_the_norm_and_leaves_the_rest(seed, angle, strength):
    """At every strength the norm is what it was, and what is orthogonal to the plane is not touched."""
    stream, (first, second) = normal(seed, 6, HIDDEN), plane(seed + 1)
    delta = displaced(stream, strength, "rotate", None, first, second, torch.tensor([angle]))
    torch.testing.assert_close((stream + delta).norm(dim=1), stream.norm(dim=1), rtol=1e-4, atol=1e-5)
    outside = delta - (delta @ first)[:, None] * first - (delta @ second)[:, None] * second
    assert outside.abs().max() < 1e-5


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_a_whole_rotation_is_the_paper_s_formula(strength):
    """At strength 1, and no further beyond it, `h - P h + |P h| (cos b1 + sin b2)`."""
    stream, (first, second), angle = normal(0, 6, HIDDEN), plane(1), 2.2
    inside = (stream @ first)[:, None] * first + (stream @ second)[:, None] * second
    aim = math.cos(angle) * first + math.sin(angle) * second
    expected = stream - inside + inside.norm(dim=1, keepdim=True) * aim
    delta = displaced(stream, strength, "rotate", None, first, second, torch.tensor([angle]))
    torch.testing.assert_close(stream + delta, expected, rtol=1e-4, atol=1e-5)


def test_half_a_rotation_goes_half_the_shorter_way():
    """From 170 degrees to -170 the way is 20 degrees, so half of it ends at 180."""
    first, second = plane(3)
    start = math.radians(170)
    stream = (2 * (math.cos(start) * first + math.sin(start) * second))[None]
    moved = stream + displaced(stream, 0.5, "rotate", None, first, second, torch.tensor([math.radians(-170)]))
    torch.testing.assert_close(moved[0] @ first, torch.tensor(-2.0))
    assert abs(float(moved[0] @ second)) < 1e-4


@settings(max_examples=30)
@given(seed=SEEDS)
def test_gates_read_signed_and_never_turn_a_vector_round(seed):
    """`hard` is all or nothing by the sign of `w . h + b`; `soft` is `r max(w . h + b, 0)`; both by a loop in NumPy."""
    stream, vector, weight, bias = normal(seed, 8, HIDDEN), normal(seed + 1, HIDDEN), normal(seed + 2, HIDDEN), 0.3
    found = {
        gate: displaced(stream, 1.5, "add", gate, vector, weight, torch.tensor([bias])) for gate in ("hard", "soft")
    }
    for row, h in enumerate(stream.double().numpy()):
        reading = float(h @ weight.double().numpy()) + bias
        expected = {"hard": 1.5 * (reading > 0), "soft": 1.5 * max(reading, 0.0)}
        for gate, factor in expected.items():
            np.testing.assert_allclose(found[gate][row], factor * vector.numpy(), rtol=1e-3, atol=1e-4)


def test_a_row_without_strength_is_not_moved_whatever_it_holds():
    """Infinite and NaN rows at strength 0 get zeros from every operator and gate."""
    stream = torch.stack([torch.full((HIDDEN,), torch.inf), torch.full((HIDDEN,), torch.nan), normal(0, HIDDEN)])
    strengths = torch.tensor([[0.0], [0.0], [1.0]])
    row, matrix, (first, second) = normal(1, HIDDEN), normal(2, 2, HIDDEN), plane(4)
    gate = (normal(3, HIDDEN), torch.tensor([5.0]))
    for operator, tensors in {
        "add": (row,),
        "affine": (row, row, -10 * row.abs(), 10 * row.abs()),
        "low_rank": (matrix, matrix, row),
        "rotate": (first, second, torch.tensor([1.0])),
    }.items():
        for kind, more in ((None, ()), ("hard", gate), ("soft", gate)):
            moved = displacement(stream, strengths, [Move(0, operator, kind, (*tensors, *more))])
            assert not moved[:2].any()


def test_several_vectors_read_the_same_stream():
    """Two moves on one row add up, each computed from the row as it came: the order is of no account."""
    stream, strengths = normal(0, 3, HIDDEN), torch.tensor([[0.5, 2.0]]).repeat(3, 1)
    moves = [
        Move(0, "add", None, (normal(1, HIDDEN),)),
        Move(1, "add", "soft", (*normal(2, 2, HIDDEN), torch.zeros(1))),
    ]
    both = displacement(stream, strengths, moves)
    torch.testing.assert_close(both, sum(displacement(stream, strengths, [move]) for move in moves))
    torch.testing.assert_close(both, displacement(stream, strengths, moves[::-1]))
