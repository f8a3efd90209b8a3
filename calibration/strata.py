"""Strata: kinds of traffic in which a threshold has to keep its promise, and not only on average over all."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from calibration.prompts import Prompt
from calibration.template import EncodedPrompts

_LENGTHS = (32, 128, 512, 2048)


def _length(_prompt: Prompt, num_tokens: int) -> str:
    above = next((bound for bound in _LENGTHS if num_tokens <= bound), None)
    return f"over {_LENGTHS[-1]} tokens" if above is None else f"up to {above} tokens"


def _turns(prompt: Prompt, _num_tokens: int) -> str:
    asked = sum(message.role == "user" for message in prompt.messages)
    return "one turn" if asked == 1 else "several turns"


def _source(prompt: Prompt, _num_tokens: int) -> str:
    return prompt.source or "no source"


KINDS: dict[str, Callable[[Prompt, int], str]] = {"length": _length, "turns": _turns, "source": _source}


def strata_of(prompts: EncodedPrompts, kinds: Sequence[str]) -> npt.NDArray[np.str_]:
    """Return the stratum of each prompt `[N]`: its value in each of `kinds`, joined. All alike where there are none."""
    return np.array(
        [
            ", ".join(KINDS[kind](prompt, length) for kind in kinds) or "all"
            for prompt, length in zip(prompts.prompts, prompts.lengths.tolist(), strict=True)
        ]
    )
