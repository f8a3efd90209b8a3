"""Strata: kinds of traffic in which a threshold has to keep its promise, and not only on average over all."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from calibration.prompts.prompt_file import Prompt
from calibration.prompts.template import EncodedPrompts
from probes.errors import CalibrationError

_LENGTHS = (32, 128, 512, 2048)
_SCRIPTS = {"cjk": "han", "hiragana": "kana", "katakana": "kana"}


def _length(_prompt: Prompt, num_tokens: int) -> str:
    return length_of(num_tokens)


def length_of(num_tokens: int) -> str:
    """Return the stratum of prompts of that many tokens."""
    above = next((bound for bound in _LENGTHS if num_tokens <= bound), None)
    return f"over {_LENGTHS[-1]} tokens" if above is None else f"up to {above} tokens"


def _turns(prompt: Prompt, _num_tokens: int) -> str:
    asked = sum(message.role == "user" for message in prompt.messages)
    return "one turn" if asked == 1 else "several turns"


def _source(prompt: Prompt, _num_tokens: int) -> str:
    return prompt.source or "no source"


def _language(prompt: Prompt, _num_tokens: int) -> str:
    # A script is no language: Latin letters write hundreds. Where a file does not say, this is all that is claimed.
    return prompt.lang or f"no lang, {script_of(prompt.text)}"


def script_of(text: str) -> str:
    """Return the script that most letters of `text` are written in, by their Unicode names: `latin script`, for one.

    `no letters` where there are none. Of scripts that are equally frequent, the first in the text.
    """
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    return f"{max(scripts, key=lambda name: scripts[name])} script" if scripts else "no letters"


@cache
def _script(letter: str) -> str:
    # "CYRILLIC SMALL LETTER A", "CJK UNIFIED IDEOGRAPH-4E2D", "FULLWIDTH LATIN CAPITAL LETTER A"
    words = [word for word in unicodedata.name(letter, "UNNAMED").split() if word not in {"FULLWIDTH", "HALFWIDTH"}]
    script = words[0].split("-")[0].lower()
    return _SCRIPTS.get(script, script)


KINDS: dict[str, Callable[[Prompt, int], str]] = {
    "language": _language,
    "length": _length,
    "turns": _turns,
    "source": _source,
}


def strata_of(prompts: EncodedPrompts, kinds: Sequence[str]) -> npt.NDArray[np.str_]:
    """Return the stratum of each prompt `[N]`: its value in each of `kinds`, joined. All alike where there are none.

    Raises `CalibrationError` for a kind that prompts do not have.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise CalibrationError(
            f"a prompt has no {unknown[0]}",
            field="--by",
            remedy=f"use {', '.join(KINDS)}; by {unknown[0]} tune with --from-store",
        )
    return np.array(
        [
            ", ".join(KINDS[kind](prompt, length) for kind in kinds) or "all"
            for prompt, length in zip(prompts.prompts, prompts.lengths.tolist(), strict=True)
        ]
    )
