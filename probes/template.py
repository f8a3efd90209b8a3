"""The chat template as token ids: where a prompt's turns end, how the prompt ends, and which tokens are the template's
own.

A client chooses the form of its request: it may cut the template's tail, begin the assistant's answer, or send token
ids. What the probes read is therefore found in the prompt's token ids, whatever route or field they came by.

A *turn* ends where the template opens an answer of the assistant. Attention is causal, so what is read at the end of an
earlier turn is what was read when it was the last one: a turn has the same score wherever a conversation goes on.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

MOST_TURNS = 1024
"""Turns of one prompt that are read each for itself: they are scored one after another, which must not hold up
others."""


class Ending(StrEnum):
    """How a prompt ends."""

    TEMPLATE = "template"
    """With the tail that the chat template opens an answer with, as in calibration."""
    PREFILL = "prefill"
    """With the beginning of the assistant's answer behind the last such tail."""
    OPEN = "open"
    """In any other way: a cut tail, no tail at all, raw text, or a turn that was never closed."""


class Turn(NamedTuple):
    """A stretch of a prompt that is read for itself: tokens `start` to `stop` (exclusive)."""

    start: int
    stop: int
    frame: tuple[int, ...] = ()
    """Positions among them that are the template's own, in order."""
    is_open: bool = False
    """Whether it ends otherwise than with the template's tail: only the prompt's last one can."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return self.stop - self.start


def whole(num_tokens: int) -> Turn:
    """Return a prompt of `num_tokens` tokens as one turn, without looking at its tokens."""
    return Turn(0, num_tokens)


class Template(BaseModel):
    """What the guard knows of a chat template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tail: tuple[int, ...] = Field(min_length=1)
    """Tokens between a user's last word and the assistant's first."""
    frames: tuple[tuple[int, ...], ...] = ()
    """Tokens that the template puts before, between and after contents, the tail among them."""
    special: tuple[int, ...] = ()
    """The tokenizer's special tokens."""
    spellings: tuple[str, ...] = ()
    """How the special tokens are typed."""
    closings: tuple[tuple[int, ...], ...] = ()
    """What options of the template put behind the tail, such as an empty thought: not the client's words."""

    def turns(self, token_ids: Sequence[int]) -> tuple[Turn, ...]:
        """Return the turns of a prompt, in order. There is at least one."""
        return self.read(token_ids)[0]

    def ending(self, token_ids: Sequence[int]) -> Ending:
        """Return how a prompt ends."""
        return self.read(token_ids)[1]

    def read(self, token_ids: Sequence[int]) -> tuple[tuple[Turn, ...], Ending]:
        """Return the turns of a prompt and how it ends, from its token ids alone."""
        marks, openings = self._marks(token_ids)
        if len(openings) > MOST_TURNS:
            return (Turn(0, len(token_ids), tuple(marks), is_open=True),), Ending.OPEN
        last = openings[-1] if openings else 0
        ending = self._ending(token_ids, marks, last)
        stops = openings if ending is Ending.TEMPLATE else [*openings, len(token_ids)]
        turns, start, mark = [], 0, 0
        for stop in stops:
            first = mark
            while mark < len(marks) and marks[mark] < stop:
                mark += 1
            is_open = stop == stops[-1] and ending is not Ending.TEMPLATE
            turns.append(Turn(start, stop, tuple(marks[first:mark]), is_open))
            start = stop
        return tuple(turns), ending

    def _ending(self, token_ids: Sequence[int], marks: Sequence[int], last: int) -> Ending:
        if not last:
            return Ending.OPEN
        rest = tuple(token_ids[last:])
        if not rest or rest in self.closings:
            return Ending.TEMPLATE
        return Ending.OPEN if marks and marks[-1] >= last else Ending.PREFILL

    def _marks(self, token_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the positions of the template's own tokens, and those at which an answer of the assistant begins."""
        starts, frames = self._starts, self._frames
        marks: list[int] = []
        openings: list[int] = []
        done = 0
        for place in [place for place, token in enumerate(token_ids) if token in starts]:
            if place < done:
                continue
            length, is_tail = _matched(token_ids, place, frames, self.tail)
            if not length and token_ids[place] in self._special:
                length = 1
            marks.extend(range(place, place + length))
            done = place + length
            if is_tail:
                openings.append(done)
        return marks, openings

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.special)

    @cached_property
    def _frames(self) -> tuple[tuple[int, ...], ...]:
        return tuple(sorted({self.tail, *self.frames}, key=len, reverse=True))

    @cached_property
    def _starts(self) -> frozenset[int]:
        return self._special | {frame[0] for frame in self._frames}


def _matched(
    token_ids: Sequence[int], place: int, frames: Sequence[tuple[int, ...]], tail: tuple[int, ...]
) -> tuple[int, bool]:
    """Return how many tokens from `place` on are the longest frame's, and whether that is the tail.

    At the prompt's end the beginning of a frame is one, too: the template's tail may have been cut.
    """
    for frame in frames:
        found = tuple(token_ids[place : place + len(frame)])
        if found == frame:
            return len(frame), frame == tail
    rest = tuple(token_ids[place:])
    return (len(rest), False) if any(rest == frame[: len(rest)] for frame in frames) else (0, False)
