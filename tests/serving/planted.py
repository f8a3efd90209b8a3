"""An artifact made by hand from the lab model: one real direction, a probe of every readout, a vector of every operator."""

from pathlib import Path

import torch

from probes.artifact import Artifact
from probes.fingerprint import fingerprint
from probes.manifest import Manifest, Probe, SteeringVector
from probes.readout import Readout
from tests.serving.lab import MODEL, Reference, of

HARM_LAYER = 3


def planted_artifact(reference: Reference, folder: Path) -> Artifact:
    """Write an artifact with a difference-in-means probe `harm`, probes `r_*` of every readout, and steering vectors."""
    harmful = _last_streams(reference, of("train", "plain_harmful", 60))
    harmless = _last_streams(reference, of("train", "plain_harmless", 60))
    direction = harmful.mean(0) - harmless.mean(0)
    weight = direction * 8 / (direction @ direction)
    bias = -float(weight @ (harmful.mean(0) + harmless.mean(0)) / 2)
    tensors = {"probe.harm.weight": weight[None]}
    probes = [Probe(name="harm", method="planted", layers=(HARM_LAYER,), bias=bias)]
    for probe, tensor in _readout_probes(reference):
        probes.append(probe)
        tensors[f"probe.{probe.name}.weight"] = tensor
    scores = torch.zeros(len(harmless), len(probes))
    scores[:, 0] = harmless @ weight + bias
    tensors["scores.harmless"] = scores
    tensors["scores.harmful"] = torch.zeros(1, len(probes))
    steering = []
    for vector, own in _steering(harmful.mean(0), harmless.mean(0)):
        steering.append(vector)
        tensors |= {f"steering.{vector.name}.{name}": tensor[None] for name, tensor in own.items()}
    manifest = Manifest(
        name="planted",
        created="2026-01-01",
        fingerprint=fingerprint(MODEL),
        probes=tuple(probes),
        steering=tuple(steering),
    )
    Artifact(manifest, tensors).save(folder)
    return Artifact.load(folder)


def _steering(harmful: torch.Tensor, harmless: torch.Tensor) -> list[tuple[SteeringVector, dict[str, torch.Tensor]]]:
    """Return vectors that each take a harmless stream `[D]` to where harmful ones are, by another operator."""
    direction = harmful - harmless
    first = direction / direction.norm()
    rest = harmless - (harmless @ first) * first
    far, unit = torch.full_like(harmless, 1e4), harmless / harmless.norm()
    kinds = {
        "refusal": ({}, {"vector": direction}),
        "gated": (
            {"gate": "soft"},
            # Reads about 1 on a harmless prompt's stream.
            {"vector": direction, "gate_weight": unit / harmless.norm(), "gate_bias": torch.zeros(1)},
        ),
        "map": (
            {"operator": "affine"},
            {"scale": torch.full_like(harmless, 0.5), "shift": harmful - 0.5 * harmless, "low": -far, "high": far},
        ),
        "turn": (
            {"operator": "rotate"},
            {"first": first, "second": rest / rest.norm(), "angle": torch.zeros(1)},
        ),
        "swap": (
            {"operator": "low_rank", "rank": 1},
            {"down": unit[None] / harmless.norm(), "up": direction[None], "shift": torch.zeros_like(harmless)},
        ),
    }
    about = {"method": "planted", "layers": (HARM_LAYER,), "norm": float(direction.norm()), "cos_refusal": 1}
    return [(SteeringVector(name=name, **about, **keys), tensors) for name, (keys, tensors) in kinds.items()]


def _last_streams(reference: Reference, conversations: list[list[dict]]) -> torch.Tensor:
    return torch.stack([reference.streams(reference.token_ids(c))[HARM_LAYER][-1] for c in conversations])


def _readout_probes(reference: Reference) -> list[tuple[Probe, torch.Tensor]]:
    last = reference.num_layers - 1
    readouts = {
        "r_offset": (Readout(kind="last", offset=3), (2,)),
        "r_mean": (Readout(kind="mean"), (0, last)),
        "r_max": (Readout(kind="max"), (1,)),
        "r_ema": (Readout(kind="ema", alpha=0.3), (2, 4)),
        "r_swim": (Readout(kind="swim", window=8), (last,)),
    }
    generator = torch.Generator().manual_seed(0)
    return [
        (
            Probe(name=name, method="planted", layers=layers, readout=readout, bias=0.25),
            torch.randn(len(layers), reference.hidden_size, generator=generator) * 0.05,
        )
        for name, (readout, layers) in readouts.items()
    ]


def naive_scores(artifact: Artifact, streams: list[torch.Tensor]) -> dict[str, float]:
    """Return every probe's score of one prompt, computed the slow and obvious way."""
    return {probe.name: naive_score(artifact, streams, probe.name) for probe in artifact.manifest.probes}


def naive_score(artifact: Artifact, streams: list[torch.Tensor], name: str) -> float:
    """Return one probe's score of one prompt."""
    probe = next(probe for probe in artifact.manifest.probes if probe.name == name)
    return _naive(probe, artifact.tensors[f"probe.{name}.weight"], streams)


def _naive(probe: Probe, weight: torch.Tensor, streams: list[torch.Tensor]) -> float:
    tokens = [
        sum(float(streams[layer][t].double() @ weight[row].double()) for row, layer in enumerate(probe.layers))
        + probe.bias
        for t in range(len(streams[0]))
    ]
    readout = probe.readout
    if readout.kind == "last":
        return tokens[-1 - readout.offset]
    if readout.kind == "mean":
        return sum(tokens) / len(tokens)
    if readout.kind == "max":
        return max(tokens)
    if readout.kind == "ema":
        level, levels = tokens[0], [tokens[0]]
        for token in tokens[1:]:
            level = readout.alpha * token + (1 - readout.alpha) * level
            levels.append(level)
        return max(levels)
    width = min(readout.window, len(tokens))
    return max(sum(tokens[i : i + width]) / width for i in range(len(tokens) - width + 1))
