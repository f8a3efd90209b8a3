"""Loads a lab checkpoint and answers prompts greedily, in batches of similar length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibration.model.arithmetic import settle
from examples.lab.dataset import Sample

BATCH_SIZE = 48


def load(folder: Path) -> tuple[Any, Any]:
    """Model (of the shipped bf16 weights) and tokenizer of a checkpoint, from local files only."""
    model = settle(AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval())
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")


def templated(tokenizer: Any, samples: Sequence[Sample]) -> list[str]:
    """Every sample as the text that the model is prompted with."""
    return [tokenizer.apply_chat_template(s.chat(), add_generation_prompt=True, tokenize=False) for s in samples]


def batched(texts: Sequence[str]) -> list[list[int]]:
    """Indices of the texts in batches of similar length, so that little padding is computed."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    return [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, samples: Sequence[Sample], max_new_tokens: int = 12) -> list[str]:
    """One greedy answer per sample, in the samples' order; twelve tokens are enough to tell a refusal."""
    texts = templated(tokenizer, samples)
    found = [""] * len(texts)
    for indices in batched(texts):
        inputs = tokenizer([texts[i] for i in indices], return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        replies = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, reply in zip(indices, replies, strict=True):
            found[index] = reply
    return found


@torch.inference_mode()
def last_token_states(model: Any, tokenizer: Any, samples: Sequence[Sample], layer: int) -> torch.Tensor:
    """Residual stream [N, D] after block `layer` (0-based, not the last block) at the last prompt token, float32."""
    texts = templated(tokenizer, samples)
    states = torch.empty(len(texts), model.config.hidden_size)
    for indices in batched(texts):
        inputs = tokenizer([texts[i] for i in indices], return_tensors="pt", padding=True, add_special_tokens=False)
        hidden = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[layer + 1]
        states[torch.tensor(indices)] = hidden[:, -1].float()
    return states
