"""The lab model in the tests: its folder, its prompts, and scores computed without any of the project's own
arithmetic.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.artifact import Artifact
from probes.steering import SteeringBank, displacement

_AS_LIKELY = 0.25
"""Nats."""
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
        """Return what is at every site of every block, `[T, W]`, each read at the module's own output or input.

        `embeddings` has one: what enters the first block.
        """
        read: dict[str, list[torch.Tensor]] = {"embeddings": [], "resid_post": [], "mlp_neurons": []}

        def keep_embeddings(_module, args, kwargs):
            read["embeddings"].append((args[0] if args else kwargs["hidden_states"])[0].float())

        def keep_stream(_module, _args, output):
            read["resid_post"].append((output if isinstance(output, torch.Tensor) else output[0])[0].float())

        def keep_neurons(_module, args):
            read["mlp_neurons"].append(args[0][0].float())

        blocks = self.model.model.layers
        hooks = [blocks[0].register_forward_pre_hook(keep_embeddings, with_kwargs=True)]
        hooks += [block.register_forward_hook(keep_stream) for block in blocks]
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

    @contextmanager
    def steered(self, artifact: Artifact, name: str, strength: float, since: int) -> Iterator[None]:
        """Let the model compute as one that is steered by the artifact's vector `name` from position `since` on."""
        bank = SteeringBank.from_artifact(artifact)

        def steer(moves, _module, _args, output):
            stream = (output if isinstance(output, torch.Tensor) else output[0])[0, since:]
            strengths = torch.tensor([[strength if each == name else 0.0 for each in bank.names]]).expand(
                len(stream), -1
            )
            stream += displacement(stream, strengths, moves).to(stream.dtype)
            return output

        blocks = self.model.model.layers
        hooks = [blocks[layer].register_forward_hook(partial(steer, moves)) for layer, moves in bank.moves.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def parts_at_a_tie(self, token_ids: list[int], one: str, other: str) -> bool:
        """Whether two greedy answers part where their next tokens are as likely as each other and as any other.

        A batch rounds otherwise than a prompt alone, and bfloat16 logits between 8 and 32 are 0.06 to 0.12 apart.
        """
        answers = [[*self.tokenizer(text, add_special_tokens=False)["input_ids"], None] for text in (one, other)]
        same = next(place for place, pair in enumerate(zip(*answers, strict=False)) if pair[0] != pair[1])
        nexts = [self.tokenizer.eos_token_id if answer[same] is None else answer[same] for answer in answers]
        logits = self.logits([*token_ids, *answers[0][:same]])
        return bool((logits.max() - logits[nexts]).max() < _AS_LIKELY)

    @torch.no_grad()
    def greedy(self, token_ids: list[int], count: int) -> str:
        ids = self.model.generate(torch.tensor([token_ids]), max_new_tokens=count, do_sample=False)
        return self.tokenizer.decode(ids[0, len(token_ids) :], skip_special_tokens=True)
