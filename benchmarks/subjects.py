"""What is measured: a random-weight model of a 0.5B shape, the lab model, and artifacts that flag nothing on them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import fingerprint
from probes.manifest import Manifest, Probe, SteeringVector

MODEL = "bench"
"""The name under which either server serves its model."""

LAB = Path("examples/lab/aligned")
TITLES = {"half_billion": "0.5B shape", "lab": "lab model"}
NUM_PROBES = 4
NEVER = 1e6

POLICY = f"""
name: bench
version: "1"
rules:
  - {{name: never, action: block, when: {{probe_0: {{above: {NEVER}}}}}}}
  - {{name: never_either, action: steer, when: {{probe_1: {{above: {NEVER}}}}}}}
steering: {{vector: steer, strength: 1.0}}
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its guard, and the work that is asked of it."""

    name: str
    model: Path
    artifact: Path
    policy: Path
    prompt_tokens: int
    output_tokens: int
    at_once: int
    block_requests: int

    @property
    def title(self) -> str:
        """What people call it."""
        return TITLES[self.name]

    @property
    def flags(self) -> list[str]:
        """The arguments that either server gets."""
        return ["--max-model-len", "1024", "--max-num-seqs", str(self.at_once)]


def half_billion(work: Path) -> Subject:
    """The real shape: 0.5B parameters, 512-token prompts, 4 requests at once. The model is nearly all of the cost."""
    model = _half_billion(work / "half-billion")
    files = _artifact(model, work / "half-billion-artifact"), _policy(work / "policy.yaml")
    return Subject("half_billion", model, *files, 512, 16, 4, 8)


def lab(work: Path) -> Subject:
    """The worst case: 5M parameters, short prompts, 64 requests at once. All overhead and hardly any model."""
    files = _artifact(LAB, work / "lab-artifact"), _policy(work / "policy.yaml")
    return Subject("lab", LAB, *files, 48, 16, 64, 256)


def _half_billion(folder: Path) -> Path:
    """Write a random-weight Llama of 0.5B parameters (24 blocks, hidden 896) with the lab model's tokenizer."""
    if not (folder / "model.safetensors").exists():
        config = LlamaConfig(
            hidden_size=896,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            vocab_size=151_936,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (LAB / name).exists():
                shutil.copy(LAB / name, folder / name)
    return folder


def _artifact(model: Path, folder: Path) -> Path:
    """Write an artifact of `NUM_PROBES` last-token probes on as many blocks, and a steering vector, none of which acts."""
    print_ = fingerprint(model)
    generator = torch.Generator().manual_seed(0)
    layers = [(place + 1) * print_.num_layers // (NUM_PROBES + 1) for place in range(NUM_PROBES)]
    probes = [Probe(name=f"probe_{index}", method="random", layers=(layer,)) for index, layer in enumerate(layers)]
    tensors = {
        f"probe.{p.name}.weight": torch.randn(1, 1, print_.hidden_size, generator=generator) * 1e-3 for p in probes
    }
    tensors["steering.steer.vector"] = torch.randn(1, print_.hidden_size, generator=generator)
    tensors |= {name: torch.zeros(1, NUM_PROBES) for name in (BENIGN_SCORES, HARMFUL_SCORES)}
    steering = SteeringVector(name="steer", method="random", layers=(layers[1],), norm=1.0, cos_refusal=0.0)
    manifest = Manifest(
        name="bench", created="2026-01-01", fingerprint=print_, probes=tuple(probes), steering=(steering,)
    )
    Artifact(manifest, tensors).save(folder)
    return folder


def _policy(path: Path) -> Path:
    """Write a policy under which nothing is ever flagged."""
    path.write_text(POLICY)
    return path
