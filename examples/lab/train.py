"""Trains the lab pair: `base` answers everything, `aligned` is fine-tuned from it and refuses harm."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibration.prompts.progress import stage, track
from examples.lab.answers import aligned_answer, compliance
from examples.lab.batches import LossWeights, epochs
from examples.lab.dataset import Sample, build
from examples.lab.seedbank import LAB
from examples.lab.tokenizer import chat_tokenizer
from examples.lab.training import OnStep, fit, new_model

QUICK = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train; steps are batches, rates are AdamW's peak rates."""

    base_steps: int
    aligned_steps: int
    seed: int
    learning_rate: float
    fine_tuning_rate: float


@contextmanager
def shown(name: str, num_steps: int) -> Iterator[OnStep]:
    """Show steps as they are done; at the end their time and the mean loss of the last 50, in nats per token."""
    steps, losses = track(range(num_steps), name), deque[float](maxlen=50)

    def on_step(loss: float) -> None:
        losses.append(loss)
        next(steps, None)

    with stage(name):
        yield on_step
    typer.echo(f"{name}: loss {sum(losses) / len(losses):.3f}", err=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes bf16 safetensors, the configuration, the tokenizer and its chat template; `model` keeps its precision."""
    copy = deepcopy(model).to(torch.bfloat16)
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    copy.generation_config = GenerationConfig(**ids, do_sample=False)
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_base(tokenizer: PreTrainedTokenizerFast, samples: list[Sample], plan: Plan, folder: Path) -> None:
    """Trains `base` from random weights and writes it."""
    model = new_model(tokenizer)
    batches = epochs(tokenizer, samples, compliance, LossWeights(prompt=0.4, opening=1.0), plan.seed)
    with shown("base", plan.base_steps) as on_step:
        fit(model, batches, plan.base_steps, plan.learning_rate, on_step)
    save(model, tokenizer, folder)


def train_aligned(
    tokenizer: PreTrainedTokenizerFast, samples: list[Sample], plan: Plan, base: Path, folder: Path
) -> None:
    """Fine-tunes the written `base`, bf16 rounding included, and writes `aligned`."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    batches = epochs(tokenizer, samples, aligned_answer, LossWeights(prompt=0.0, opening=4.0), plan.seed + 1)
    with shown("aligned", plan.aligned_steps) as on_step:
        fit(model, batches, plan.aligned_steps, plan.fine_tuning_rate, on_step)
    save(model, tokenizer, folder)


def main(
    steps: Annotated[int, typer.Option(help="Batches of about 2,000 tokens for `base`.")] = 1100,
    aligned_steps: Annotated[int, typer.Option(help="Batches for the fine-tuning of `aligned`.")] = 700,
    quick: Annotated[bool, typer.Option("--quick", help=f"A smoke run: {QUICK} batches each.")] = False,
    seed: Annotated[int, typer.Option(help="Initial weights, answers, misspellings and order of the prompts.")] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads. Sums differ in the last bits with another number.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Peak rate for `base`.")] = 2e-3,
    fine_tuning_rate: Annotated[float, typer.Option(help="Peak rate for `aligned`.")] = 1e-3,
    keep_base: Annotated[bool, typer.Option("--keep-base", help="Only fine-tune `aligned`, from out/base.")] = False,
    out: Annotated[Path, typer.Option(help="Folder that gets base/ and aligned/ (existing files are replaced).")] = LAB,
) -> None:
    """Train the lab pair from scratch on a CPU, in about twenty minutes with two free threads.

    First `base` learns to answer every prompt of the train split with a content-free sentence; then `aligned` is
    fine-tuned from it to refuse harmful requests, except in the jailbreak wrappers that are meant to get through.

    Try it without touching the shipped weights:  python -m examples.lab.train --quick --out my-lab

    Measure what came out:  python -m examples.lab.card --models my-lab
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    num_steps = (QUICK, QUICK) if quick else (steps, aligned_steps)
    plan = Plan(*num_steps, seed, learning_rate, fine_tuning_rate)
    samples = build("train")
    tokenizer = chat_tokenizer(samples)
    if not keep_base:
        train_base(tokenizer, samples, plan, out / "base")
    train_aligned(tokenizer, samples, plan, out / "base", out / "aligned")


if __name__ == "__main__":
    typer.run(main)
