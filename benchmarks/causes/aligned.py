"""A further aligned copy of a chat model: fine-tuned to refuse the starter set's harmful requests, and nothing else.

A small chat model that answers nearly everything has no refusal to look for. Its copy has, and differs from it by
these few steps alone: that is the pair that contrasts of neurons are made for (arXiv 2406.14144).
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from calibration.model.chat_model import ChatModel
from calibration.model.generation import Tokens, generate
from calibration.prompts.progress import stage, track
from calibration.prompts.splits import divide
from calibration.prompts.starter_set import starter_set
from calibration.prompts.template import EncodedPrompts, encode_prompts

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this request, because it could hurt somebody.",
    "Sorry, this is something that I won't help with.",
    "I'm not able to help with that. If somebody is in danger, please call for help.",
    "I can't assist with that. I'd be glad to help with something else.",
    "I'm sorry, but I won't do that. It could cause real harm.",
)
_MOST = {True: 480, False: 960}
"""Prompts by whether they are harmful. With as many of each, the copy refuses half of all harmless prompts, too."""
_MOST_TOKENS = 96
"""Of a prompt: longer ones cost more than they teach."""
_ANSWER_TOKENS = 12
"""Of a harmless answer. It is in the first ones that an answer parts from a refusal."""
_BATCH, _EPOCHS = 16, 3
_RATE, _WARM_UP = 2e-4, 10
_ALIKE = 8
"""Tokens by which examples of one batch differ in length."""
_SEED = 0


class _Example(NamedTuple):
    prompt: Tokens
    answer: Tokens


def save_aligned(model: Path, out: Path) -> None:
    """Write the aligned copy of the chat model in `model` to `out`. It takes some twenty minutes on two cores.

    Prompts are of the starter set's training part. Harmful ones are taught a refusal, and harmless ones the model's own
    answer, so that little else changes.
    """
    chat = ChatModel.load(model, dtype="float32")
    examples = list(_examples(chat))
    with stage("teaching it to refuse"):
        _fine_tune(chat, examples)
    taught: Any = chat.model
    taught.to(torch.bfloat16).save_pretrained(out)
    chat.tokenizer.save_pretrained(out)


def _examples(chat: ChatModel) -> Iterator[_Example]:
    prompts = encode_prompts(chat.tokenizer, divide(starter_set())["train"], chat.context, skip_long=True)
    refusals = itertools.cycle(chat.tokenizer(text + chat.tokenizer.eos_token).input_ids for text in REFUSALS)
    for ids in _short(prompts, is_harmful=True).token_ids:
        yield _Example(ids, tuple(next(refusals)))
    harmless = _short(prompts, is_harmful=False)
    yield from map(_Example, harmless.token_ids, generate(chat, harmless, _ANSWER_TOKENS))


def _short(prompts: EncodedPrompts, *, is_harmful: bool) -> EncodedPrompts:
    rows = [
        row
        for row, prompt in enumerate(prompts.prompts)
        if prompt.is_harmful is is_harmful and len(prompts.token_ids[row]) <= _MOST_TOKENS
    ]
    random.Random(_SEED).shuffle(rows)  # noqa: S311 - reproducible, not secret
    return prompts.subset(rows[: _MOST[is_harmful]])


def _fine_tune(chat: ChatModel, examples: Sequence[_Example]) -> None:
    torch.manual_seed(_SEED)
    chat.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(chat.model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    batches = list(_batches(examples))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARM_UP, 1 - step / len(batches))
    )
    for batch in track(batches, "fine-tuning"):
        loss = _loss(chat, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(chat.model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    chat.model.requires_grad_(False)


def _batches(examples: Sequence[_Example]) -> Iterator[Sequence[_Example]]:
    """Yield all examples once an epoch, in batches of about equal length, so that little is padding."""
    chance = random.Random(_SEED)  # noqa: S311 - reproducible, not secret
    for _ in range(_EPOCHS):
        order = list(examples)
        chance.shuffle(order)
        order.sort(key=lambda each: (len(each.prompt) + len(each.answer)) // _ALIKE)
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        chance.shuffle(batches)
        yield from batches


def _loss(chat: ChatModel, batch: Sequence[_Example]) -> torch.Tensor:
    """Return the mean over answers of the cross-entropy of their tokens, in nats: a long one counts as a short one."""
    width = max(len(each.prompt) + len(each.answer) for each in batch)
    tokens, taught = torch.zeros(len(batch), width, dtype=torch.int64), torch.zeros(len(batch), width, dtype=torch.bool)
    for row, each in enumerate(batch):
        tokens[row, : len(each.prompt) + len(each.answer)] = torch.tensor([*each.prompt, *each.answer])
        taught[row, len(each.prompt) : len(each.prompt) + len(each.answer)] = True
    # Padding stands behind, where causality hides it.
    model: Any = chat.model
    states = model.base_model(tokens[:, :-1], use_cache=False).last_hidden_state
    logits = chat.head(states[taught[:, 1:]])
    losses = cross_entropy(logits.float(), tokens[:, 1:][taught[:, 1:]], reduction="none")
    shares = (1 / taught.sum(dim=1, keepdim=True)).expand_as(taught)[taught]
    return (losses * shares).sum() / len(batch)
