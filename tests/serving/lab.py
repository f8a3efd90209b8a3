"""The lab model in the tests: its folder, its prompts, and scores computed without any of the project's own arithmetic."""

import json
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LAB = Path(__file__).parents[2] / "examples" / "lab"
MODEL = LAB / "aligned"


@cache
def prompts(split: str) -> list[dict]:
    return [json.loads(line) for line in (LAB / "prompts" / f"{split}.jsonl").read_text().splitlines()]


def of(split: str, source: str, count: int, label: str | None = None) -> list[list[dict]]:
    """Return `count` conversations of one source, in the file's order."""
    rows = [row for row in prompts(split) if row["source"] == source and label in (None, row["label"])]
    return [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows[:count]]


class Reference:
    """A plain Hugging Face forward pass of one prompt alone: what the served tap must agree with."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    def token_ids(self, messages: list[dict]) -> list[int]:
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def streams(self, token_ids: list[int]) -> list[torch.Tensor]:
        """Return the residual stream `[T, D]` after every block, read at the block's own output."""
        read: list[torch.Tensor] = []

        def keep(_module, _args, output):
            read.append((output if isinstance(output, torch.Tensor) else output[0])[0].float())

        hooks = [block.register_forward_hook(keep) for block in self.model.model.layers]
        try:
            self.model(torch.tensor([token_ids]))
        finally:
            for hook in hooks:
                hook.remove()
        return read

    @torch.no_grad()
    def greedy(self, token_ids: list[int], count: int) -> str:
        ids = self.model.generate(torch.tensor([token_ids]), max_new_tokens=count, do_sample=False)
        return self.tokenizer.decode(ids[0, len(token_ids) :], skip_special_tokens=True)
