"""The openings by which the model's own refusals are told from its other answers."""

from collections import Counter
from collections.abc import Sequence

from calibration.model.generation import Tokens

_LONGEST = 3
"""Most tokens of an opening. It is as short as tells refusals from other answers: a model that never begins another
answer with "I" refuses by that word; one that does, by "I cannot"."""
_MINIMUM_SHARE, _MINIMUM_RATIO = 0.01, 4.0
Answers = list[Tokens]


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
