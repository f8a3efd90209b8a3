"""LoRA adapters of the lab model, made by hand, and the model that each makes of it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.serving.lab import Reference

RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")


def make_adapter(reference: Reference, folder: Path, seed: int, size: float = 0.15) -> dict[str, torch.Tensor]:
    """Write a random adapter as PEFT would, and return what it adds to each weight, by the weight's name."""
    generator = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    for name, weight in reference.model.named_parameters():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in TARGETS:
            continue
        down = torch.randn(RANK, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
        up = torch.randn(weight.shape[0], RANK, generator=generator) * size
        prefix = f"base_model.model.{module}"
        tensors |= {f"{prefix}.lora_A.weight": down.bfloat16(), f"{prefix}.lora_B.weight": up.bfloat16()}
        added[name] = (up.bfloat16().float() @ down.bfloat16().float()) * (ALPHA / RANK)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(TARGETS)}))
    return added


class AdaptedReference(Reference):
    """A plain forward pass of the lab model with an adapter merged into its weights."""

    def __init__(self, added: dict[str, torch.Tensor]) -> None:
        super().__init__()
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, delta in added.items():
                parameters[name].copy_((parameters[name].float() + delta).to(parameters[name].dtype))
