"""The guards that are measured: artifacts of 1 to 64 probes, an idle policy, and one that acts when asked to."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from probes.artifact import BENIGN_ANSWERS, BENIGN_SCORES, HARMFUL_ANSWERS, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint, fingerprint
from probes.manifest import Manifest, Probe, SteeringVector, Watch
from probes.readout import Readout

NEVER = 1e6
TAPPED = 4
CHANNELS = {f"channels_{count}": count for count in (64, 256, 768)}
"""Guards with a perceptron, by its hidden units."""

_CALLER = hashlib.sha256(b"bench").hexdigest()
LET_PASS: Mapping[str, Any] = {"shadow": True, "caller": _CALLER}
"""What a request says to pass the acting policy."""
BLOCK: Mapping[str, Any] = {"tighten": True}
"""What a request says to be blocked by the acting policy, which steers one that says nothing."""

# Every request asks for a whole answer (`ignore_eos`), and steering is what is measured.
_STEERING = "steering: {vector: steer, strength: 1.0, constrained: steer}"
IDLE = f"""
name: idle
version: "1"
off_template: allow
rules:
  - {{name: never, action: block, when: {{probe_0: {{above: {NEVER}}}}}}}
  - {{name: never_either, action: steer, when: {{probe_0: {{above: {NEVER}}}}}}}
{_STEERING}
"""
_WATCHING = f"""{IDLE}
answer_rules:
  - {{name: never_in_an_answer, action: block, when: {{watch_0: {{above: {NEVER}}}}}}}
"""
_ACTING = f"""
name: acting
version: "1"
off_template: allow
rules:
  - {{name: always, action: steer, when: {{probe_0: {{above: {-NEVER}}}}}}}
{_STEERING}
callers:
  - {{name: bench, key_sha256: {_CALLER}, may_shadow: true}}
"""


@dataclass(frozen=True, slots=True)
class Guard:
    """What a guarded engine is started with."""

    artifact: Path
    policy: Path


def guards(model: Path, folder: Path) -> dict[str, Guard]:
    """Write the guards of `model` into `folder`, by name.

    `guarded` has four probes, one on each of four blocks; `probes_1` one, `probes_16` and `probes_64` four and sixteen
    on each of these blocks, `every_block` 64 that are spread over all blocks. `acting` is `guarded` with the other
    policy, and `watching` reads every answer along, by a watch of each of its probes. `channels_64` to `channels_768`
    have one perceptron of so many hidden units over every token, on each of four blocks.
    """
    folder.mkdir(exist_ok=True, parents=True)
    idle, acting, watching = (folder / f"{name}.yaml" for name in ("idle", "acting", "watching"))
    for policy, text in ((idle, IDLE), (acting, _ACTING), (watching, _WATCHING)):
        policy.write_text(text)
    print_ = fingerprint(model)
    every = print_.num_layers
    kinds = {
        "guarded": (TAPPED, TAPPED),
        "probes_1": (1, 1),
        "probes_16": (16, TAPPED),
        "probes_64": (64, TAPPED),
        "every_block": (64, every),
    }
    made = {name: Guard(write_artifact(print_, *kind, folder / name), idle) for name, kind in kinds.items()}
    for name, count in CHANNELS.items():
        made[name] = Guard(_write(print_, *_perceptron(print_, count), folder / name), idle)
    guarded = made["guarded"].artifact
    return made | {"acting": Guard(guarded, acting), "watching": Guard(guarded, watching)}


def write_artifact(print_: Fingerprint, num_probes: int, num_blocks: int, folder: Path) -> Path:
    """Write an artifact of last-token probes that are spread evenly over `num_blocks` blocks, and a steering vector."""
    generator = torch.Generator().manual_seed(0)
    blocks = spread_out(print_.num_layers, num_blocks)
    probes = [
        Probe(name=f"probe_{index}", method="random", layers=(blocks[index % num_blocks],))
        for index in range(num_probes)
    ]
    tensors = {
        f"probe.{p.name}.weight": torch.randn(1, 1, print_.hidden_size, generator=generator) * 1e-3 for p in probes
    }
    return _write(print_, probes, tensors, folder)


def _perceptron(print_: Fingerprint, channels: int) -> tuple[list[Probe], dict[str, torch.Tensor]]:
    """Return a probe of so many hidden units, which reads every token at four blocks, with its tensors."""
    layers = tuple(spread_out(print_.num_layers, TAPPED))
    readout = Readout(kind="mean", over="content")
    probe = Probe(name="probe_0", method="random", layers=layers, channels=channels, head="mlp", readout=readout)
    generator = torch.Generator().manual_seed(0)
    shapes = probe.shapes(print_.hidden_size).items()
    return [probe], {name: torch.randn(*shape, generator=generator) * 1e-3 for name, shape in shapes}


def _write(print_: Fingerprint, probes: list[Probe], tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    """Write an artifact of the probes, watches of those that can be watched, and a steering vector."""
    generator = torch.Generator().manual_seed(1)
    tensors["steering.steer.vector"] = torch.randn(1, print_.hidden_size, generator=generator)
    tensors |= {name: torch.zeros(1, len(probes)) for name in (BENIGN_SCORES, HARMFUL_SCORES)}
    # Idle where no policy has rules on answers.
    watches = tuple(
        Watch(name=f"watch_{index}", probe=probe.name, readout=Readout(kind="ema", alpha=0.1), max_tokens=128)
        for index, probe in enumerate(probes[:TAPPED])
        if probe.channels == 1
    )
    tensors |= {name: torch.ones(*shape) for watch in watches for name, shape in watch.shapes.items()}
    if watches:
        tensors |= {name: torch.zeros(1, len(watches)) for name in (BENIGN_ANSWERS, HARMFUL_ANSWERS)}
    steered = spread_out(print_.num_layers, TAPPED)[1]
    steering = SteeringVector(name="steer", method="random", layers=(steered,), norm=1.0, cos_refusal=0.0)
    manifest = Manifest(
        name="bench",
        created="2026-01-01",
        fingerprint=print_,
        probes=tuple(probes),
        watches=watches,
        steering=(steering,),
    )
    Artifact(manifest, tensors).save(folder)
    return folder


def spread_out(num_layers: int, count: int) -> list[int]:
    """Return `count` different blocks of `num_layers`, evenly spread and not the first where there is a choice."""
    if count == num_layers:
        return list(range(num_layers))
    return [(place + 1) * num_layers // (count + 1) for place in range(count)]
