"""Steering vectors land on their own blocks and rows, as measured."""

import torch

from probes.manifest import SteeringVector
from probes.steering import SteeringBank


def vector(name, *layers):
    """One steering vector's entry in the manifest."""
    return SteeringVector(name=name, method="m", layers=layers, norm=1.0, cos_refusal=0.0)


def test_each_vector_has_its_row_on_its_blocks(make):
    """`c @ vectors[l]` is the sum of the vectors that act on block l, each times its own coefficient."""
    artifact = make(steering=(vector("a", 1, 3), vector("b", 3)))
    bank = SteeringBank.from_artifact(artifact)
    a, b = (artifact.tensors[f"steering.{name}.vector"] for name in ("a", "b"))
    assert bank.names == ("a", "b")
    assert sorted(bank.vectors) == [1, 3]
    coefficients = torch.tensor([2.0, -0.5])
    torch.testing.assert_close(coefficients @ bank.vectors[1], 2 * a[0])
    torch.testing.assert_close(coefficients @ bank.vectors[3], 2 * a[1] - 0.5 * b[0])


def test_vectors_are_not_normalised(make):
    """Strength 1 adds the vector as it was measured."""
    artifact = make(steering=(vector("a", 0),))
    artifact.tensors["steering.a.vector"].mul_(7)
    bank = SteeringBank.from_artifact(artifact)
    assert torch.equal(bank.vectors[0][0], artifact.tensors["steering.a.vector"][0])


def test_no_vectors_no_blocks(make):
    """An artifact without steering gives an empty bank, which adds nothing anywhere."""
    bank = SteeringBank.from_artifact(make(steering=()))
    assert bank.names == ()
    assert bank.vectors == {}
