"""A small artifact with planted numbers, for every test of the ground floor."""

from collections.abc import Callable

import pytest
import torch

from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Platt, Probe, SteeringVector
from probes.readout import Readout

HIDDEN, LAYERS = 6, 4

PROBES = (
    Probe(name="refusal", method="difference_of_means", layers=(1,), bias=0.25, platt=Platt(slope=2.0, intercept=-1.0)),
    Probe(name="harm", method="logistic", layers=(0, 2), readout=Readout(kind="mean"), bias=-1.5, category="harm"),
)
STEERING = (SteeringVector(name="refusal", method="difference_of_means", layers=(1, 3), norm=2.0, cos_refusal=1.0),)


@pytest.fixture
def fingerprint() -> Fingerprint:
    """The print of a model that does not exist, of 4 blocks and 6 hidden dimensions."""
    digests = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "0" * 64)
    return Fingerprint(
        architecture="LlamaForCausalLM", num_layers=LAYERS, hidden_size=HIDDEN, dtype="float32", **digests
    )


@pytest.fixture
def make(fingerprint) -> Callable[..., Artifact]:
    """A maker of artifacts with random, seeded tensors."""

    def make(probes=PROBES, steering=STEERING, seed=0, benign=8, harmful=5, **manifest) -> Artifact:
        generator = torch.Generator().manual_seed(seed)
        shapes = {name: shape for p in probes for name, shape in p.shapes(HIDDEN).items()}
        shapes |= {f"steering.{v.name}.{name}": shape for v in steering for name, shape in v.shapes(HIDDEN).items()}
        shapes |= {BENIGN_SCORES: (benign, len(probes)), HARMFUL_SCORES: (harmful, len(probes))}
        tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        content = {"name": "planted", "created": "2026-01-01T00:00:00Z", "fingerprint": fingerprint, **manifest}
        return Artifact(Manifest(probes=probes, steering=steering, **content), tensors)

    return make
