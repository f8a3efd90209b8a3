"""Greedy answers, and the openings by which the model's own refusals are told from its other answers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import plan_batches
from calibration.prompts.template import EncodedPrompts

NUM_TOKENS = 12
"""Tokens of an answer that are looked at."""
_LONGEST = 3
"""Most tokens of an opening. It is as short as tells refusals from other answers: a model that never begins another
answer with "I" refuses by that word; one that does, by "I cannot"."""
_MINIMUM_SHARE, _MINIMUM_RATIO = 0.01, 4.0
Answers = list[tuple[int, ...]]


def greedy_answers(chat: ChatModel, prompts: EncodedPrompts, num_tokens: int = NUM_TOKENS) -> Answers:
    """Return the first `num_tokens` token ids of each greedy answer, in the prompts' order, under what is in force."""
    from transformers import GenerationConfig

    model: Any = chat.model
    ends = getattr(model.generation_config, "eos_token_id", None)
    plain = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=ends, pad_token_id=0)
    answers: Answers = [()] * len(prompts.prompts)
    for rows in plan_batches(prompts.lengths.tolist(), max_tokens=4096, max_prompts=64):
        input_ids, mask = _padded_left([prompts.token_ids[row] for row in rows], chat.device)
        output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=plain)
        for row, ids in zip(rows, output[:, input_ids.shape[1] :].tolist(), strict=True):
            answers[row] = tuple(ids)
    return answers


def refusal_openings(on_harmful: Answers, on_harmless: Answers, tokens: Sequence[int]) -> frozenset[tuple[int, ...]]:
    """Return the shortest openings, begun by one of `tokens`, that answers to harmful prompts have far more often."""
    found: set[tuple[int, ...]] = set()
    for length in range(1, _LONGEST + 1):
        seen, other = (Counter(answer[:length] for answer in answers) for answers in (on_harmful, on_harmless))
        found |= {
            opening
            for opening, count in seen.items()
            if opening[0] in tokens
            and not opens_as(opening, frozenset(found))
            and count / len(on_harmful) >= max(_MINIMUM_SHARE, _MINIMUM_RATIO * other[opening] / len(on_harmless))
        }
    return frozenset(found)


def opens_as(answer: tuple[int, ...], openings: frozenset[tuple[int, ...]]) -> bool:
    """Return whether an answer begins with one of the openings."""
    return any(answer[: len(opening)] == opening for opening in openings)


def _padded_left(token_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left, so that every answer begins in the same column."""
    longest = max(map(len, token_ids))
    rows = [[0] * (longest - len(ids)) + list(ids) for ids in token_ids]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in token_ids]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)
