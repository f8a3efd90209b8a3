"""Steering vectors land on their own blocks and rows, as measured, and what must not be served is refused."""

import pytest
import torch

from probes.artifact import Artifact
from probes.errors import ArtifactCorrupt, ArtifactError
from probes.manifest import SteeringVector
from probes.steering import SteeringBank, displacement, require_servable_steering

HIDDEN = 6


def vector(name, *layers, **keys):
    """One steering vector's entry in the manifest."""
    return SteeringVector(name=name, method="m", layers=layers, norm=1.0, cos_refusal=0.0, **keys)


def test_each_vector_acts_on_its_blocks(make):
    """What is added on block l is the sum of the vectors that act there, each times its own coefficient, as
    measured.
    """
    artifact = make(steering=(vector("a", 1, 3), vector("b", 3)))
    artifact.tensors["steering.a.vector"].mul_(7)
    bank = SteeringBank.from_artifact(artifact)
    a, b = (artifact.tensors[f"steering.{name}.vector"] for name in ("a", "b"))
    assert bank.names == ("a", "b")
    assert sorted(bank.moves) == [1, 3]
    stream, coefficients = torch.randn(1, HIDDEN), torch.tensor([[2.0, -0.5]])
    torch.testing.assert_close(displacement(stream, coefficients, bank.moves[1])[0], 2 * a[0])
    torch.testing.assert_close(displacement(stream, coefficients, bank.moves[3])[0], 2 * a[1] - 0.5 * b[0])


def test_no_vectors_no_blocks(make):
    """An artifact without steering gives an empty bank, which adds nothing anywhere."""
    bank = SteeringBank.from_artifact(make(steering=()))
    assert (bank.names, bank.moves) == ((), {})


def test_schedules_fade_and_stay_at_their_last_factor(make):
    """Factors count from the position that predicts the first token; a vector without a schedule keeps its strength."""
    bank = SteeringBank.from_artifact(make(steering=(vector("a", 1, schedule=(1.0, 0.5, 0.25)), vector("b", 1))))
    assert bank.factors(0, 2).tolist() == [[1.0, 1.0], [0.5, 1.0]]
    assert bank.factors(7, 1).tolist() == [[0.25, 1.0]]
    assert bank.factors(3, 0).shape == (0, 2)


KINDS = [
    {"operator": "add", "gate": "hard"},
    {"operator": "add", "gate": "soft"},
    {"operator": "affine"},
    {"operator": "low_rank", "rank": 3},
    {"operator": "low_rank", "rank": 1, "gate": "hard"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_comes_back_as_it_was_saved(make, tmp_path, kind):
    """Save, load, lay out: the same displacement; and a tensor too few or of another shape is refused by its name."""
    artifact = make(steering=(vector("odd", 0, 2, **kind),))
    artifact.save(tmp_path / "a")
    stream, strength = torch.randn(4, HIDDEN), torch.ones(4, 1)
    before, after = (SteeringBank.from_artifact(each) for each in (artifact, Artifact.load(tmp_path / "a")))
    for layer in (0, 2):
        moved = displacement(stream, strength, before.moves[layer])
        assert torch.equal(displacement(stream, strength, after.moves[layer]), moved)
    name = next(iter(tensor for tensor in artifact.tensors if tensor.startswith("steering.odd")))
    short = {key: value[:1] if key == name else value for key, value in artifact.tensors.items()}
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact(artifact.manifest, short).save(tmp_path / "b")
    assert caught.value.field == name


def test_a_plane_that_is_none_is_refused(make):
    """A rotation keeps the norm only in an orthonormal plane, so another is an error and not another operator."""
    artifact = make(steering=(vector("turn", 1, operator="rotate"),))
    with pytest.raises(ArtifactError, match="orthonormal"):
        SteeringBank.from_artifact(artifact)
    plane = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q
    artifact.tensors["steering.turn.first"][0] = plane[0]
    artifact.tensors["steering.turn.second"][0] = plane[1]
    assert list(SteeringBank.from_artifact(artifact).moves) == [1]


@pytest.mark.parametrize("keys", [{"operator": "ablate"}, {"evaluation_only": True}])
def test_ablation_is_not_served(make, keys):
    """A vector that takes a direction out, or is marked as made to be measured, is refused with its name and a
    remedy.
    """
    artifact = make(steering=(vector("fine", 1), vector("strip", 2, **keys)))
    for refuse in (SteeringBank.from_artifact, lambda each: require_servable_steering(each.manifest)):
        with pytest.raises(ArtifactError, match="no server runs") as caught:
            refuse(artifact)
        assert caught.value.field == "steering.strip.operator"
        assert caught.value.remedy


def test_a_rank_belongs_to_low_rank():
    """A rank elsewhere, or none there, is a mistake in the manifest."""
    for keys in ({"operator": "low_rank"}, {"operator": "add", "rank": 2}):
        with pytest.raises(ValueError, match="rank"):
            vector("a", 1, **keys)
