"""`python -m benchmarks.recording`: what recording activations costs beside the forward pass that it needs anyway.

Pairs: the same batches through the same model, once bare and once recorded to disk, in random order, one pair after
another. A second series doubles the prompts again and again: what a prompt costs must not depend on how many there are.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.cost.subjects import LAB
from benchmarks.paired import Spread, ratio
from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import make_batch
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import EncodedPrompts, encode_prompts, template_suffix
from calibration.recording.activations import record
from calibration.recording.places import Where, every_place
from calibration.recording.shards import plan_shards

_PROMPTS = LAB.parent / "prompts" / "train.jsonl"
_QUICK = 3
_COUNTS = (1000, 2000, 4000, 8000)


def main(
    pairs: Annotated[int, typer.Option(min=2, help="Pairs for each model.")] = 40,
    prompts: Annotated[int, typer.Option(min=16, help="Prompts in a pair.")] = 128,
    only: Annotated[str | None, typer.Option(help="One part: lab, wide or growth.")] = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu, or a torch device.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A few pairs, to see that it runs; proves nothing.")] = False,
) -> None:
    """Measure recording against a bare forward pass over the same batches: throughput as paired ratios with their
    spread.
    """
    console = Console()
    console.print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}, {device}")
    for name, make in (("lab", _lab), ("wide", _wide)):
        if only in (None, name):
            chat = make(device)
            found = compare(chat, _sample(chat, prompts), _QUICK if quick else pairs)
            console.print(
                f"{name}: throughput of recording over that of the bare pass {found.median:.3f}"
                f" ({found.low:.3f} to {found.high:.3f}, {found.pairs} pairs of {prompts} prompts)"
            )
    if only in (None, "growth"):
        chat = _lab(device)
        for count in _COUNTS[: 1 if quick else None]:
            sample, busy = _sample(chat, count), time.process_time()
            seconds = _recorded(chat, sample)
            busy = time.process_time() - busy
            console.print(f"lab: {count} prompts, each {seconds / count * 1e3:.2f} ms, CPU {busy / count * 1e3:.2f} ms")


def compare(chat: ChatModel, prompts: EncodedPrompts, pairs: int) -> Spread:
    """Return the spread of recording's throughput over the bare pass's: 1 where recording costs nothing."""
    arms: dict[str, Callable[[ChatModel, EncodedPrompts], float]] = {"bare": _bare, "recorded": _recorded}
    for take in arms.values():  # warms up
        take(chat, prompts)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    chance = random.Random(0)  # noqa: S311 - orders the arms, guards nothing
    for _ in range(pairs):
        for name in chance.sample(list(arms), len(arms)):
            seconds[name].append(arms[name](chat, prompts))
    return ratio(seconds["bare"], seconds["recorded"])


def _bare(chat: ChatModel, prompts: EncodedPrompts) -> float:
    began = time.perf_counter()
    for shard in plan_shards(prompts.lengths.tolist(), chat.num_layers * chat.hidden_size * len(_where(chat))):
        for rows in shard.batches:
            logits = chat.last_logits(make_batch(prompts.token_ids, rows, chat.device))
    float(logits[0, 0])  # a GPU is done only when it was asked for something
    return time.perf_counter() - began


def _recorded(chat: ChatModel, prompts: EncodedPrompts) -> float:
    folder = Path(tempfile.mkdtemp(prefix="foreguard-bench-"))
    try:
        began = time.perf_counter()
        record(chat, prompts, _where(chat), folder)
        return time.perf_counter() - began
    finally:
        shutil.rmtree(folder)


def _where(chat: ChatModel) -> tuple[Where, ...]:
    """Return the places that a calibration reads."""
    return every_place(len(template_suffix(chat.tokenizer)))


def _sample(chat: ChatModel, count: int) -> EncodedPrompts:
    encoded = encode_prompts(chat.tokenizer, load_prompts(_PROMPTS), chat.context)
    return encoded.subset(np.sort(np.random.default_rng(0).permutation(len(encoded.prompts))[:count]))


def _lab(device: str) -> ChatModel:
    return ChatModel.load(LAB, device=device)


def _wide(device: str) -> ChatModel:
    """Return a random-weight Llama of 0.1B parameters (8 blocks, hidden 1024) with the lab model's tokenizer."""
    tokenizer = ChatModel.load(LAB).tokenizer
    config = LlamaConfig(
        hidden_size=1024,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        intermediate_size=2816,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    return ChatModel.wrap(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device), tokenizer)


if __name__ == "__main__":
    typer.run(main)
