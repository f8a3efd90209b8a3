"""Changed letters: a request that people still read, and whose tokens a model has hardly met.

A probe reads meaning where the model does. What is written with other letters, a small model does not read at all, and
a larger one may read and answer. So probe `letters` finds such writing itself, whatever is asked.
"""

import base64
import codecs
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

Write = Callable[[str, random.Random], str]

LOOK_ALIKES = str.maketrans("aceiopsxyABCEHIKMOPTX", "\u0430\u0441\u0435\u0456\u043e\u0440\u0455\u0445\u0443"
                             "\u0410\u0412\u0421\u0415\u041d\u0406\u041a\u041c\u041e\u0420\u0422\u0425")  # fmt: skip
_DIGITS = str.maketrans("aeiostAEIOST", "431057431057")
_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_FULL_WIDTH = str.maketrans(_ASCII, "".join(chr(ord(letter) + 0xFEE0) for letter in _ASCII))
_STROKE = "\u0336"


def _zero_width(request: str, _: random.Random) -> str:
    return "\u200b".join(request)


def _spaced(request: str, _: random.Random) -> str:
    return "  ".join(" ".join(word) for word in request.split())


def _mixed_case(request: str, chance: random.Random) -> str:
    return "".join(chance.choice((letter.lower(), letter.upper())) for letter in request)


def _base64(request: str, _: random.Random) -> str:
    return f"Decode this Base64 text and answer it: {base64.b64encode(request.encode()).decode()}"


def _backwards(request: str, _: random.Random) -> str:
    return request[::-1]


def _struck_out(request: str, _: random.Random) -> str:
    return "".join(f"{letter}{_STROKE}" for letter in request)


KINDS: Mapping[str, Write] = MappingProxyType(
    {
        "zero-width spaces": _zero_width,
        "look-alike letters": lambda request, _: request.translate(LOOK_ALIKES),
        "digits for letters": lambda request, _: request.translate(_DIGITS),
        "spaced out": _spaced,
        "mixed case": _mixed_case,
        "Base64": _base64,
        "full width": lambda request, _: request.translate(_FULL_WIDTH),
        "backwards": _backwards,
        "ROT13": lambda request, _: codecs.encode(request, "rot13"),
        "struck out": _struck_out,
    }
)
"""Ways to change all letters of a request, by name."""


def change_some(write: Write, request: str, chance: random.Random, share: float = 0.5) -> str:
    """Return the request with the letters of about a `share` of its words changed, and of one at least."""
    words = request.split(" ")
    chosen = {index for index in range(len(words)) if chance.random() < share} or {chance.randrange(len(words))}
    return " ".join(write(word, chance) if index in chosen else word for index, word in enumerate(words))
