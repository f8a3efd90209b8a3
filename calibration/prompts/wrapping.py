"""Wrapping: training prompts once more, inside templates, so that a probe does not take the wrapper for the request.

A probe that has met bare requests only misses the same request in a wrapper, or takes every long prompt for harmful
(arXiv 2605.12726, and `docs/evaluation.md`). Harmful and harmless prompts are wrapped alike: the wrapper is no sign of
harm.

A wrapped prompt keeps its original's line and source: wherever prompts are divided, both are on one side.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibration.prompts.messages import Message
from calibration.prompts.prompt_file import Prompt
from calibration.prompts.wrapping_texts import APPLICATIONS, CLOSINGS, DEMANDS, FRAMES, NAMES, PERSONAS, RULES

_MOST_RULES = 12
_MOST_FILLERS = 5
_KINDS = ("application", "frame", "persona", "among others")
_RULES_FIRST = 0.7
_SEED = 20_260


def wrap_prompts(prompts: Sequence[Prompt], share: float) -> tuple[Prompt, ...]:
    """Return wrapped copies of a `share`, 0 to 1, of the single-turn prompts of either class, the same ones each
    time.
    """
    rng = np.random.default_rng(_SEED)
    single = [prompt for prompt in prompts if len(prompt.messages) == 1]
    fillers = [prompt.messages[0].content for prompt in single if not prompt.is_harmful]
    wrapped: list[Prompt] = []
    for harmful in (False, True):
        of_class = [prompt for prompt in single if prompt.is_harmful == harmful]
        chosen = rng.permutation(len(of_class))[: round(share * len(of_class))]
        wrapped += [_wrapped(of_class[index], fillers, rng) for index in np.sort(chosen)]
    return tuple(wrapped)


def _wrapped(prompt: Prompt, fillers: Sequence[str], rng: np.random.Generator) -> Prompt:
    text = _wrap(prompt.messages[0].content, fillers, rng)
    return replace(prompt, id=f"{prompt.id}, wrapped", messages=(Message(role="user", content=text),), is_wrapped=True)


def _wrap(request: str, fillers: Sequence[str], rng: np.random.Generator) -> str:
    name, kind = str(rng.choice(NAMES)), rng.choice(_KINDS)
    # The request goes in last, so that braces in it stay as they are.
    frame = str(rng.choice(APPLICATIONS if kind == "application" else FRAMES))
    asked = frame.replace("{name}", name).replace("{request}", request)
    if kind == "application":
        return asked
    if kind == "frame":
        parts = [asked, *_some(CLOSINGS, 1, rng)]
    elif kind == "persona":
        rules, ends = _some(RULES, _MOST_RULES, rng), [*_some(DEMANDS, 2, rng), *_some(CLOSINGS, 2, rng)]
        rest = [*rules, asked, *ends] if rng.random() < _RULES_FIRST else [asked, *rules, *ends]
        parts = [str(rng.choice(PERSONAS)), *rest]
    else:
        parts = _some(fillers, _MOST_FILLERS, rng)
        parts.insert(int(rng.integers(len(parts) + 1)), asked)
        return _joined(parts, rng)
    return _joined([asked if part is asked else part.replace("{name}", name) for part in parts], rng)


def _joined(parts: Sequence[str], rng: np.random.Generator) -> str:
    return str(rng.choice((" ", "\n", "\n\n"))).join(parts)


def _some(texts: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    """Return up to `most` of the texts, in a random order."""
    count = int(rng.integers(0, min(most, len(texts)) + 1))
    return [str(texts[index]) for index in rng.permutation(len(texts))[:count]]
