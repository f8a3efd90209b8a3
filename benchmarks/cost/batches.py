"""The requests of a pair, made from its number: a run that goes on asks what an unbroken run would have asked."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cost.guards import BLOCK, LET_PASS
from benchmarks.cost.points import Work

Prompt = Sequence[int]

_ORDINARY = range(100, 4000)
"""Tokens that every subject and every judge knows."""
_INSTRUCTIONS = 48


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as an engine takes it."""

    prompt: Prompt
    max_tokens: int
    asks: Mapping[str, Any] = field(default_factory=dict)
    """Of the guard."""


def prompts(work: Work, seed: str) -> list[list[int]]:
    """Return the batch's prompts of random tokens, which share their first `cached_tokens`.

    No two seeds are alike: a prompt that was asked before would be found in the prefix cache.
    """
    chance = random.Random(seed)  # noqa: S311 - makes work, guards nothing

    def some(count: int) -> list[int]:
        return [chance.choice(_ORDINARY) for _ in range(count)]

    shared = some(work.cached_tokens)
    return [shared + some(work.prompt_tokens - work.cached_tokens) for _ in range(work.requests)]


def requests(work: Work, arm: str, engine: str, seed: str) -> list[Request]:
    """Return what `engine` is asked, as an `arm` of a pair.

    A blocked request ought to cost its prefill: an engine without a guard is asked for one token of it. A judge model
    is asked for one token about each prompt.
    """
    made = []
    for number, prompt in enumerate(prompts(work, seed)):
        blocked, steered = number < work.blocked, work.blocked <= number < work.blocked + work.steered
        if arm in ("judge", "small_judge"):
            made.append(Request(judge_prompt(prompt), 1))
        elif engine == "acting":
            asks = BLOCK if blocked else {} if steered else LET_PASS
            made.append(Request(prompt, _length(work, number), asks))
        else:
            made.append(Request(prompt, 1 if blocked else _length(work, number)))
    return made


def _length(work: Work, number: int) -> int:
    """Return how many tokens out a request has: the first of many, of different lengths, end and make room one by
    one.
    """
    return 1 + number % work.output_tokens if number < work.at_once else work.output_tokens


def shared_prefix(work: Work, seed: str) -> list[int]:
    """Return what all prompts of the batch begin with, to be put into the prefix cache."""
    return prompts(work, seed)[0][: work.cached_tokens]


def judge_prompt(prompt: Prompt) -> list[int]:
    """Return what a judge reads.

    Its instructions precede the prompt, so that its pass shares no prefix with the answer's.
    """
    instructions = (list(prompt[::-1]) * _INSTRUCTIONS)[:_INSTRUCTIONS]
    return [*instructions, *prompt]
