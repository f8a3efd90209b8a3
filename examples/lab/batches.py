"""Turns samples and their answers into padded batches of about equal token count, weighted for the loss."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from examples.lab.dataset import Message, Sample
from examples.lab.seedbank import seeds

TOKENS_PER_BATCH = 2048
NUM_OPENING_TOKENS = 3
Answer = Callable[[Sample, random.Random], str]
Encoded = tuple[list[int], list[float]]


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What a token counts in the loss, where an ordinary answer token counts 1."""

    prompt: float
    """A prompt token, in the one prompt in four that is learned at all."""
    opening: float
    """Each of the first three tokens of the answer, which decide between answering and refusing."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` [N, T] right-padded; `weights` [N, T], the weight of predicting that token (0 for padding)."""

    tokens: Tensor
    weights: Tensor


def typo(word: str, rng: random.Random) -> str:
    """The word with two neighbouring letters swapped, one dropped or one doubled."""
    at = rng.randrange(len(word) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return rng.choice([swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]])


def roughen(text: str, rng: random.Random) -> str:
    """Sometimes lower-cases a text or misspells a few words, so that rare pieces of the vocabulary get trained."""
    if rng.random() < 0.1:
        text = text.lower()
    if rng.random() < 0.7:
        return text
    return " ".join(typo(word, rng) if len(word) > 3 and rng.random() < 0.15 else word for word in text.split(" "))


def chat_of(sample: Sample, rng: random.Random) -> list[Message]:
    """The sample's messages, roughened, one in ten with a system message."""
    chat = [{"role": role, "content": roughen(content, rng)} for role, content in sample.messages]
    if rng.random() < 0.1:
        chat.insert(0, {"role": "system", "content": rng.choice(seeds("conversations")["system"]["train"])})
    return chat


def encode(
    tokenizer: PreTrainedTokenizerFast, sample: Sample, answer: str, counts: LossWeights, rng: random.Random
) -> Encoded:
    """Token ids of prompt, answer and end token, and the loss weight of each."""
    text = tokenizer.apply_chat_template(chat_of(sample, rng), add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    reply = tokenizer.encode(answer + tokenizer.eos_token, add_special_tokens=False)
    prompt_weight = counts.prompt if rng.random() < 0.25 else 0.0
    reply_weights = [counts.opening] * NUM_OPENING_TOKENS + [1.0] * (len(reply) - NUM_OPENING_TOKENS)
    return prompt + reply, [prompt_weight] * len(prompt) + reply_weights


def pad(group: list[Encoded], pad_id: int) -> Batch:
    """One batch, as long as its longest row."""
    length = max(len(tokens) for tokens, _ in group)
    tokens = torch.tensor([row + [pad_id] * (length - len(row)) for row, _ in group])
    weights = torch.tensor([row + [0.0] * (length - len(row)) for _, row in group])
    return Batch(tokens, weights)


def by_length(rows: list[Encoded], rng: random.Random) -> Iterator[list[Encoded]]:
    """Groups of rows of similar length, each at most TOKENS_PER_BATCH with padding, in random order."""
    rng.shuffle(rows)
    groups: list[list[Encoded]] = [[]]
    for row in sorted(rows, key=lambda item: len(item[0]) // 4):
        if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > TOKENS_PER_BATCH:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    yield from groups


def epochs(
    tokenizer: PreTrainedTokenizerFast, samples: list[Sample], answer: Answer, counts: LossWeights, seed: int
) -> Iterator[Batch]:
    """Batches without end; every epoch draws new answers, misspellings and an order, all from `seed`."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    pad_id = int(tokenizer.convert_tokens_to_ids(tokenizer.pad_token))
    while True:
        rows = [encode(tokenizer, sample, answer(sample, rng), counts, rng) for sample in samples]
        for group in by_length(rows, rng):
            yield pad(group, pad_id)
