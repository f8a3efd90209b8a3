"""Shapes of models whose weights vLLM makes up (`--load-format dummy`), and guards for them that never act."""

from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig

from benchmarks.cost.guards import IDLE, TAPPED, write_artifact
from probes.artifact import Artifact
from probes.fingerprint import Fingerprint
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
        """Write a guard: last-token probes on `TAPPED` blocks and a vector, under a policy that flags nothing."""
        artifact = write_artifact(self._fingerprint(), TAPPED, TAPPED, folder / "artifact")
        (folder / "policy.yaml").write_text(IDLE)
        digest = Artifact.load(artifact).manifest.digest
        policy = (folder / "policy.yaml").resolve()
        return GuardConfig(artifact=artifact.resolve(), artifact_digest=digest, policy=policy)

    def _fingerprint(self) -> Fingerprint:
        nothing = "0" * 64
        return Fingerprint(
            architecture="LlamaForCausalLM",
            num_layers=self.layers,
            hidden_size=self.hidden,
            config=nothing,
            weights=nothing,
            tokenizer=nothing,
            chat_template=nothing,
            dtype="bfloat16",
        )


SHAPES = {
    "8b": Shape("Llama 8B shape", 32, 4096, 14336, 32, 8, 128_256),
    "tiny": Shape("tiny shape", 6, 256, 640, 4, 2, 4096),
}
"""What is measured, and what shows on a CPU that the measuring works."""
