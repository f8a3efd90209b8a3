"""Fitted probes laid out as serving reads them, before any threshold is certified."""

from collections.abc import Sequence

import torch

from calibration.fitting.fitted import FittedProbe
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest
from probes.scoring import ProbeBank
from probes.template import Template


def bank_of(identity: Fingerprint, probes: Sequence[FittedProbe], template: Template | None = None) -> ProbeBank:
    """Lay out fitted probes as serving does."""
    return ProbeBank.from_artifact(uncertified(identity, probes, template))


def uncertified(identity: Fingerprint, probes: Sequence[FittedProbe], template: Template | None = None) -> Artifact:
    """Return an artifact of these probes that no validation scores stand behind: it can score, and nothing else."""
    specs = tuple(probe.spec for probe in probes)
    manifest = Manifest(name="uncertified", created="", fingerprint=identity, template=template, probes=specs)
    none = torch.empty(0, len(probes))
    return Artifact(manifest, tensors_of(probes) | {BENIGN_SCORES: none, HARMFUL_SCORES: none.clone()})


def tensors_of(probes: Sequence[FittedProbe]) -> dict[str, torch.Tensor]:
    """Return the tensors of all these probes, by the names that an artifact has them under."""
    return {name: tensor for item in probes for name, tensor in item.tensors().items()}
