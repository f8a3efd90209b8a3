"""Dilution: training prompts with harmless text around them, so that evidence may stand anywhere in a long prompt.

A probe that has seen only bare requests may rest on where they end: it misses the same request inside a wrapper (arXiv
2605.12726). Harmful and harmless prompts are wrapped alike, in other harmless requests of the training set, so that
neither length nor wrapper tells the classes apart.
"""

from dataclasses import replace

import numpy as np

from calibration.fitting.training_set import Rows, TrainingSet
from calibration.prompts.messages import Message
from calibration.prompts.prompt_file import Prompt
from calibration.prompts.template import EncodedPrompts, encode_prompts

_MOST_FILLERS = 8
"""Harmless requests around one prompt; their number is drawn evenly from 1 on."""
_SEED = 20_260


def dilute(training: TrainingSet, rows: Rows, fillers: Rows) -> EncodedPrompts:
    """Return the prompts `rows` with last messages of harmless single-turn prompts among `fillers` around their own.

    Text goes through the chat template again. What is then too long for the model is left out.
    """
    prompts = training.prompts
    texts = [prompts.prompts[row].messages[0].content for row in fillers if _can_fill(prompts.prompts[row])]
    if not texts:
        return prompts.subset([])
    rng = np.random.default_rng(_SEED)
    wrapped = tuple(_wrap(prompts.prompts[row], texts, rng) for row in rows)
    file = replace(prompts.file, prompts=wrapped)
    return encode_prompts(training.chat.tokenizer, file, training.chat.context, skip_long=True)


def _can_fill(prompt: Prompt) -> bool:
    return not prompt.is_harmful and len(prompt.messages) == 1


def _wrap(prompt: Prompt, texts: list[str], rng: np.random.Generator) -> Prompt:
    """Put some of `texts` before and the rest after what the last message says, at an even chance of any place."""
    chosen = [texts[index] for index in rng.integers(len(texts), size=rng.integers(1, _MOST_FILLERS + 1))]
    chosen.insert(int(rng.integers(len(chosen) + 1)), prompt.messages[-1].content)
    last = Message(role="user", content="\n".join(chosen))
    return replace(prompt, messages=(*prompt.messages[:-1], last))
