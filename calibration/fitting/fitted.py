"""What every method gives: probes and steering vectors as the manifest describes them, with their tensors."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from calibration.fitting.study import StudyResult
from calibration.recording.stage_file import written_whole
from probes.head import HEADS
from probes.manifest import Probe, SteeringVector

NO_REFUSAL_VECTOR = "there is no steering vector 'refusal' in the artifact"
"""Why studies of the refusal direction are not asked, in words."""


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """A probe and its weight, float32 `[len(layers), channels, W]`."""

    spec: Probe
    weight: torch.Tensor
    head: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The head's tensors by their short names (`probes.head`), float32."""

    @classmethod
    def of(cls, spec: Probe, tensors: Mapping[str, torch.Tensor]) -> "FittedProbe":
        """Take a probe out of tensors that are named as in an artifact."""
        prefix = f"probe.{spec.name}."
        head = {name: tensors[prefix + name] for name in HEADS[spec.head].shapes(spec.num_values)}
        return cls(spec, tensors[prefix + "weight"], head)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return its tensors, named as in an artifact."""
        own = {"weight": self.weight, **self.head}
        return {f"probe.{self.spec.name}.{name}": tensor.contiguous() for name, tensor in own.items()}


@dataclass(frozen=True, slots=True)
class FittedSteering:
    """A steering vector and its tensors, float32, named and shaped as `SteeringVector.shapes` says."""

    spec: SteeringVector
    tensors: dict[str, torch.Tensor]

    @property
    def vector(self) -> torch.Tensor:
        """What operator `add` adds, `[len(layers), D]`."""
        return self.tensors["vector"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """All that one or more methods found; `notes` say in words what was not found, and why."""

    probes: tuple[FittedProbe, ...] = ()
    steering: tuple[FittedSteering, ...] = ()
    notes: tuple[str, ...] = ()
    studies: tuple[StudyResult, ...] = ()
    """What was learned beside them."""
    not_asked: Mapping[str, str] = field(default_factory=dict)
    """Studies that could not be asked, by name, and why."""

    @property
    def names(self) -> tuple[str, ...]:
        """The probes' names, in order."""
        return tuple(probe.spec.name for probe in self.probes)


def merge(parts: Iterable[Fitted]) -> Fitted:
    """Return everything that was found, in the methods' order, with each probe's cosine with the refusal direction."""
    found = list(parts)
    steering = tuple(item for part in found for item in part.steering)
    probes = tuple(item for part in found for item in part.probes)
    refusal = next((item for item in steering if item.spec.name == "refusal"), None)
    return Fitted(
        probes=tuple(_with_cosine(probe, refusal) for probe in probes) if refusal else probes,
        steering=steering,
        notes=tuple(note for part in found for note in part.notes),
        studies=tuple(study for part in found for study in part.studies),
        not_asked={name: reason for part in found for name, reason in part.not_asked.items()},
    )


def _with_cosine(probe: FittedProbe, refusal: FittedSteering) -> FittedProbe:
    if probe.spec.site != "resid_post" or probe.spec.channels != 1:
        return probe  # neurons are another basis, and several channels have no one direction
    # Blocks share one residual basis, so a probe elsewhere is compared by its row nearest to the refusal's block.
    layer = refusal.spec.layers[0]
    row = min(range(len(probe.spec.layers)), key=lambda index: abs(probe.spec.layers[index] - layer))
    cosine = float(torch.cosine_similarity(probe.weight[row, 0], refusal.vector[0], dim=0))
    return replace(
        probe, spec=probe.spec.model_copy(update={"evidence": probe.spec.evidence | {"cos_refusal": cosine}})
    )


def save_fitted(fitted: Fitted, path: Path) -> None:
    """Write what was found to one safetensors file; its header holds the descriptions."""
    tensors = {name: tensor for item in fitted.probes for name, tensor in item.tensors().items()}
    for item in fitted.steering:
        tensors |= {f"steering.{item.spec.name}.{name}": each.contiguous() for name, each in item.tensors.items()}
    header = {
        "probes": json.dumps([item.spec.model_dump(mode="json") for item in fitted.probes]),
        "steering": json.dumps([item.spec.model_dump(mode="json") for item in fitted.steering]),
        "notes": json.dumps(fitted.notes),
        "studies": json.dumps([study.model_dump(mode="json") for study in fitted.studies]),
        "not_asked": json.dumps(dict(fitted.not_asked)),
    }
    with written_whole(path) as staging:
        # safetensors refuses an empty file, and a method may find nothing.
        save_file(tensors or {"nothing": torch.zeros(1)}, staging, metadata=header)


def load_fitted(path: Path) -> Fitted:
    """Read what `save_fitted` wrote."""
    with safe_open(path, framework="pt") as file:
        header = {name: json.loads(text) for name, text in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        probes = [Probe.model_validate(spec) for spec in header["probes"]]
        steering = [SteeringVector.model_validate(spec) for spec in header["steering"]]
        return Fitted(
            probes=tuple(FittedProbe.of(spec, tensors) for spec in probes),
            steering=tuple(
                FittedSteering(spec, {name: tensors[f"steering.{spec.name}.{name}"] for name in spec.shapes(0)})
                for spec in steering
            ),
            notes=tuple(header["notes"]),
            studies=tuple(StudyResult.model_validate(study) for study in header["studies"]),
            not_asked=header["not_asked"],
        )
