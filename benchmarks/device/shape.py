"""Shapes of models whose weights vLLM makes up (`--load-format dummy`), and guards for them that never act."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig

from benchmarks.subjects import NUM_PROBES, POLICY
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe, SteeringVector
from serving.config import GuardConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's."""

    title: str
    layers: int
    hidden: int
    neurons: int
    heads: int
    kv_heads: int
    vocabulary: int

    def write(self, folder: Path) -> Path:
        """Write the configuration, which is all that a model without weights and tokenizer needs."""
        config = LlamaConfig(
            architectures=["LlamaForCausalLM"],
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.neurons,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=131_072,
            dtype="bfloat16",
        )
        config.save_pretrained(folder)
        return folder

    def guard(self, folder: Path) -> GuardConfig:
        """Write a guard: last-token probes on `NUM_PROBES` blocks and a vector, under a policy that flags nothing."""
        artifact = Artifact(self._manifest(), self._tensors())
        artifact.save(folder / "artifact")
        (folder / "policy.yaml").write_text(POLICY)
        digest = Artifact.load(folder / "artifact").manifest.digest
        return GuardConfig(
            artifact=(folder / "artifact").resolve(),
            artifact_digest=digest,
            policy=(folder / "policy.yaml").resolve(),
        )

    def _probed(self) -> list[int]:
        return [(place + 1) * self.layers // (NUM_PROBES + 1) for place in range(NUM_PROBES)]

    def _manifest(self) -> Manifest:
        nothing = "0" * 64
        own = Fingerprint(
            architecture="LlamaForCausalLM",
            num_layers=self.layers,
            hidden_size=self.hidden,
            config=nothing,
            weights=nothing,
            tokenizer=nothing,
            chat_template=nothing,
            dtype="bfloat16",
        )
        probes = [Probe(name=f"probe_{i}", method="random", layers=(at,)) for i, at in enumerate(self._probed())]
        steering = SteeringVector(name="steer", method="random", layers=(self._probed()[1],), norm=1.0, cos_refusal=0.0)
        return Manifest(
            name="device", created="2026-01-01", fingerprint=own, probes=tuple(probes), steering=(steering,)
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        chance = torch.Generator().manual_seed(0)
        names = [f"probe.probe_{index}.weight" for index in range(NUM_PROBES)]
        weights = {name: torch.randn(1, 1, self.hidden, generator=chance) * 1e-3 for name in names}
        vector = {"steering.steer.vector": torch.randn(1, self.hidden, generator=chance)}
        return weights | vector | {name: torch.zeros(1, NUM_PROBES) for name in (BENIGN_SCORES, HARMFUL_SCORES)}


SHAPES = {
    "8b": Shape("Llama 8B shape", 32, 4096, 14336, 32, 8, 128_256),
    "tiny": Shape("tiny shape", 6, 256, 640, 4, 2, 4096),
}
"""What is measured, and what shows on a CPU that the measuring works."""
