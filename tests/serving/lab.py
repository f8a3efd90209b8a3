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
        # Matrices this small gain nothing from a second thread, and lose all when something else runs beside them.
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        # Float32 holds the shipped bfloat16 weights, and some CPUs multiply bfloat16 at a quarter of its speed.
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    @property
    def num_neurons(self) -> int:
        return self.model.config.intermediate_size

    def token_ids(self, messages: list[dict]) -> list[int]:
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def streams(self, token_ids: list[int]) -> list[torch.Tensor]:
        """Return the residual stream `[T, D]` after every block."""
        return self.read(token_ids)["resid_post"]

    @torch.no_grad()
    def read(self, token_ids: list[int]) -> dict[str, list[torch.Tensor]]:
        """Return what is at every site of every block, `[T, W]`, each read at the module's own output or input."""
        read: dict[str, list[torch.Tensor]] = {"resid_post": [], "mlp_neurons": []}

        def keep_stream(_module, _args, output):
            read["resid_post"].append((output if isinstance(output, torch.Tensor) else output[0])[0].float())

        def keep_neurons(_module, args):
            read["mlp_neurons"].append(args[0][0].float())

        blocks = self.model.model.layers
        hooks = [block.register_forward_hook(keep_stream) for block in blocks]
        hooks += [block.mlp.down_proj.register_forward_pre_hook(keep_neurons) for block in blocks]
        try:
            self.model(torch.tensor([token_ids]))
        finally:
            for hook in hooks:
                hook.remove()
        return read

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Return the logits `[V]` of the token after the last, in float32."""
        return self.model(torch.tensor([token_ids])).logits[0, -1].float()

    @torch.no_grad()
    def shortfall(self, token_ids: list[int], answer: list[int]) -> float:
        """Return by how many nats a token of an answer is less likely than the likeliest in its place, at the most."""
        logits = self.model(torch.tensor([[*token_ids, *answer]])).logits[0, len(token_ids) - 1 : -1].float()
        said = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        return float((logits.max(dim=1).values - said).max())

    @torch.no_grad()
    def greedy(self, token_ids: list[int], count: int) -> str:
        ids = self.model.generate(torch.tensor([token_ids]), max_new_tokens=count, do_sample=False)
        return self.tokenizer.decode(ids[0, len(token_ids) :], skip_special_tokens=True)
