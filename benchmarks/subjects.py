"""What is measured: a random-weight model of a 0.5B shape, the lab model, and artifacts that flag nothing on them."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import fingerprint
from probes.manifest import Manifest, Probe, SteeringVector

LAB = Path("examples/lab/aligned")
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


def half_billion(folder: Path) -> Path:
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


def artifact(model: Path, folder: Path) -> Path:
    """Write an artifact of `NUM_PROBES` last-token probes on as many blocks, and a steering vector, none of which acts."""
    print_ = fingerprint(model)
    generator = torch.Generator().manual_seed(0)
    layers = [(place + 1) * print_.num_layers // (NUM_PROBES + 1) for place in range(NUM_PROBES)]
    probes = [Probe(name=f"probe_{index}", method="random", layers=(layer,)) for index, layer in enumerate(layers)]
    tensors = {f"probe.{p.name}.weight": torch.randn(1, print_.hidden_size, generator=generator) * 1e-3 for p in probes}
    tensors["steering.steer.vector"] = torch.randn(1, print_.hidden_size, generator=generator)
    tensors |= {name: torch.zeros(1, NUM_PROBES) for name in (BENIGN_SCORES, HARMFUL_SCORES)}
    steering = SteeringVector(name="steer", method="random", layers=(layers[1],), norm=1.0, cos_refusal=0.0)
    manifest = Manifest(
        name="bench", created="2026-01-01", fingerprint=print_, probes=tuple(probes), steering=(steering,)
    )
    Artifact(manifest, tensors).save(folder)
    return folder


def policy(path: Path) -> Path:
    """Write a policy under which nothing is ever flagged."""
    path.write_text(POLICY)
    return path
