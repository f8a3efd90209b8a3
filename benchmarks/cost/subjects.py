"""What is measured: a random-weight model of a 0.5B shape and the lab model, with their guards and small judges."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.cost.guards import Guard, guards

MODEL = "bench"
"""The name under which every server serves its model."""

LAB = Path("examples/lab/aligned")
TITLES = {"half_billion": "0.5B shape", "lab": "lab model"}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its guards, and the small model that may judge in its place."""

    name: str
    model: Path
    small_judge: Path
    guards: Mapping[str, Guard]

    @property
    def title(self) -> str:
        """What people call it."""
        return TITLES[self.name]


def half_billion(work: Path) -> Subject:
    """The real shape: 0.5B parameters. The model is nearly all of the cost."""
    shape = LlamaConfig(
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151_936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    # A tenth of all parameters, and a tenth of those that multiply each token: hence the small vocabulary.
    tenth = LlamaConfig(
        hidden_size=384,
        num_hidden_layers=16,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=1536,
        vocab_size=32_768,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = _random_model(work / "half-billion", shape)
    judge = _random_model(work / "half-billion-judge", tenth)
    return Subject("half_billion", model, judge, guards(model, work / "half-billion-guards"))


def lab(work: Path) -> Subject:
    """The worst case: 5M parameters. All overhead and hardly any model."""
    tenth = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=256,
        vocab_size=4096,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Subject("lab", LAB, _random_model(work / "lab-judge", tenth), guards(LAB, work / "lab-guards"))


SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {"half_billion": half_billion, "lab": lab}
"""What makes each subject, in a folder for what it has to write."""


def _random_model(folder: Path, config: LlamaConfig) -> Path:
    """Write a Llama of random weights with the lab model's tokenizer, unless it is there."""
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (LAB / name).exists():
                shutil.copy(LAB / name, folder / name)
    return folder
