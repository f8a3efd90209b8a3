"""Greedy answers, batch by batch, token by token, with the model's own cache of keys and values.

Texts of a batch are aligned at their end: pads stand to the left, are masked, and do not count as positions, so that an
answer is the one that the prompt would get alone, up to the rounding of the model's precision.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input
from calibration.prompts.batching import Batch, make_batch, plan_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts

Read = Callable[[torch.Tensor], torch.Tensor]
"""Takes each text's next tokens `[B, t]`; returns the logits after them, float32 `[B, V]`."""
Tokens = tuple[int, ...]

_BATCH_TOKENS, _BATCH_PROMPTS = 4096, 64


class Reader:
    """A model that reads a batch of texts on and on, and remembers what it has read."""

    def __init__(self, chat: ChatModel, batch: Batch) -> None:
        self._chat = chat
        self._mask = batch.mask.flip(1)
        self._cache: Any = None
        # A few families (BLOOM) take positions from the mask alone.
        self._takes_positions = "position_ids" in inspect.signature(chat.model.forward).parameters

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read `tokens` `[B, t]`: at first the prompts as `align_right` gives them, then one token a text."""
        if self._cache is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(tokens)], dim=1)
        arguments = {"input_ids": tokens, "attention_mask": self._mask, "past_key_values": self._cache}
        if self._takes_positions:
            # Texts that have ended are read on until the last of their batch has; they may not leave the context.
            positions = (self._mask.cumsum(1) - 1).clamp(min=0, max=self._chat.context - 1)
            arguments["position_ids"] = positions[:, -tokens.shape[1] :]
        with torch.inference_mode(), on_input(self._chat.head, lambda states: states[:, -1:]):
            output = self._chat.model(**arguments, use_cache=True)
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits.float()


def align_right(batch: Batch) -> torch.Tensor:
    """Return the batch's tokens `[B, T]` with their pads moved to the left."""
    width = batch.input_ids.shape[1]
    source = torch.arange(width, device=batch.lengths.device) - (width - batch.lengths[:, None])
    return batch.input_ids.gather(1, source.clamp(min=0)) * (source >= 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a batch was answered."""

    tokens: list[Tokens]
    """Each text's answer, with its end token where it came to one."""
    first_logits: torch.Tensor
    """Logits of the first token, float32 `[B, V]`."""


def reply(read: Read, chat: ChatModel, batch: Batch, max_tokens: int) -> Reply:
    """Answer a batch greedily by `read`, in at most `max_tokens` tokens and within the context of `chat`."""
    ends = end_tokens(chat)
    room = [min(max_tokens, chat.context + 1 - length) for length in batch.lengths.tolist()]
    first_logits = logits = read(align_right(batch))
    answers: list[list[int]] = [[] for _ in room]
    going = list(range(len(room)))
    while going:
        chosen = logits.argmax(dim=-1)
        for row in going:
            answers[row].append(int(chosen[row]))
        going = [row for row in going if answers[row][-1] not in ends and len(answers[row]) < room[row]]
        if going:
            logits = read(chosen.unsqueeze(1))
    return Reply([tuple(answer) for answer in answers], first_logits)


def generate(chat: ChatModel, prompts: EncodedPrompts, max_tokens: int) -> list[Tokens]:
    """Return the greedy answer to each prompt, in the prompts' order: at most `max_tokens` tokens, the end token
    included.
    """
    answers: list[Tokens] = [()] * len(prompts.prompts)
    for batch in track(plan_replies(chat, prompts, max_tokens), "generating answers"):
        given = reply(Reader(chat, batch).read, chat, batch, max_tokens)
        for row, tokens in zip(batch.rows.tolist(), given.tokens, strict=True):
            answers[row] = tokens
    return answers


def plan_replies(
    chat: ChatModel, prompts: EncodedPrompts, max_tokens: int, *, most_tokens: int = _BATCH_TOKENS
) -> list[Batch]:
    """Return the prompts in batches of about `most_tokens` tokens, their answers counted."""
    lengths = [len(ids) + max_tokens for ids in prompts.token_ids]
    plan = plan_batches(lengths, max_tokens=most_tokens, max_prompts=_BATCH_PROMPTS)
    return [make_batch(prompts.token_ids, rows, chat.device) for rows in plan]


def end_tokens(chat: ChatModel) -> frozenset[int]:
    """Return the tokens that end an answer, by the model's generation settings and its tokenizer."""
    stated = getattr(getattr(chat.model, "generation_config", None), "eos_token_id", None)
    found = stated if isinstance(stated, list) else [stated]
    return frozenset(token for token in (*found, chat.tokenizer.eos_token_id) if token is not None)
