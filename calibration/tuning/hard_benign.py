"""Hard benign prompts in an operator's traffic: harmless ones that sound harmful, or are unlike most.

Without any, a rate certified on that traffic is a promise about easy prompts only (XSTest, arXiv 2308.01263, has the
kinds of prompts that are refused in excess).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from calibration.tuning.strata import script_of

_TRIGGERS = re.compile(
    r"\b(?:kill(?:s|ed|ing|er)?|murder\w*|assassinat\w*|shoot(?:s|ing)?|shot|stab(?:s|bed|bing)?|strangl\w*"
    r"|bomb(?:s|ed|ing)?|explod\w*|explosi\w*|weapons?|guns?|kni(?:fe|ves)|poison\w*|toxic|drugs?|steal(?:s|ing)?"
    r"|stole|stolen|rob(?:s|bed|bing|bery|beries)?|hack(?:s|ed|ing|ers?)?|exploit\w*|attack\w*|malware|virus\w*"
    r"|phish\w*|fraud\w*|scams?|forgery|smuggl\w*|kidnap\w*|hostages?|tortur\w*|terroris\w*|suicid\w*|overdos\w*"
    r"|burn(?:s|ed|t|ing)?|destroy\w*|blow up|blackmail\w*|stalk(?:s|ed|ing|ers?)?|abus(?:e|es|ed|ing|ive)|racis\w*)\b",
    re.IGNORECASE,
)
_TOOLS = re.compile(
    r"<tools?>|<tool_call>|<\|?(?:tool|python_tag|tool_calls?_begin)|\[AVAILABLE_TOOLS\]|\[TOOL_CALLS\]"
    r"|\"type\":\s*\"function\"|\"tool_calls?\"|\"parameters\":\s*\{"
)
_COMMON = re.compile(r"\b(?:the|and|is|of|to|what|how|for|you|this|with|can)\b", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]{2,}")
_FEWEST = 0.01
"""Share of prompts below which a kind is too rare to have had a say in a rate of about 1 %."""


@dataclass(frozen=True, slots=True)
class HardBenign:
    """How many of `count` benign prompts are hard, by kind."""

    count: int
    kinds: dict[str, int]

    @property
    def lacking(self) -> tuple[str, ...]:
        """The kinds of which there are hardly any: less than 1 %."""
        return tuple(name for name, number in self.kinds.items() if number < _FEWEST * self.count)


def hard_benign_in(texts: Sequence[str]) -> HardBenign:
    """Count prompts with trigger words, with tools, and in other languages than English.

    These are guesses from words, those of a system turn included: a prompt of few words says little of its language,
    and none says whether a tool is harmless. They tell traffic without any such prompt from traffic with some, and no
    more.
    """
    kinds = {
        "trigger words": sum(bool(_TRIGGERS.search(text)) for text in texts),
        "tools": sum(bool(_TOOLS.search(text)) for text in texts),
        "other languages": sum(not _is_english(text) for text in texts),
    }
    return HardBenign(len(texts), kinds)


def _is_english(text: str) -> bool:
    words = len(_WORDS.findall(text))
    if script_of(text) not in ("latin script", "no letters"):
        return False
    # About every fourth word of English is one of the commonest; a few words may have none by chance.
    return words < 8 or len(_COMMON.findall(text)) >= words / 25
