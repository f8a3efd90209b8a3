"""What is asked: so many requests at once, of so many tokens each.

Pairs are interleaved, and resumed where they stopped.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from benchmarks.records import Arms, Records

OUTPUT_TOKENS = 32


class Runs(Protocol):
    """An engine, or what stands for one."""

    def run(self, prompts: list[list[int]], max_tokens: int) -> dict[str, list[float]]:
        """Return seconds by request, of `first_token` and `per_token`."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One load."""

    at_once: int
    prompt_tokens: int

    @property
    def name(self) -> str:
        """Its name in the records."""
        return f"{self.at_once} x {self.prompt_tokens}"

    @property
    def tokens(self) -> int:
        """What it holds in the KV cache at its end."""
        return self.at_once * (self.prompt_tokens + OUTPUT_TOKENS)


CELLS = tuple(Cell(at_once, tokens) for tokens in (128, 512, 2048, 8192) for at_once in (1, 8, 32, 128))


def fitting(cache_tokens: int) -> tuple[list[Cell], list[Cell]]:
    """Return the cells that a KV cache of so many tokens holds without preempting anyone, and the others."""
    return [c for c in CELLS if c.tokens <= cache_tokens], [c for c in CELLS if c.tokens > cache_tokens]


def measure(
    engines: Mapping[str, Runs],
    cells: list[Cell],
    records: Records,
    pairs: int,
    vocabulary: int,
    seconds: float,
    say: Callable[[str], None] = print,
) -> None:
    """Take pairs until every cell has `pairs` of them or `seconds` are over; a first pair of each only warms up."""
    end = time.monotonic() + seconds
    for cell in cells:
        for engine in engines.values():
            engine.run(_prompts(random.Random(f"{cell.name} warms up"), cell, vocabulary), OUTPUT_TOKENS)  # noqa: S311
    for number, cell in _turns(cells, records, pairs):
        if time.monotonic() > end:
            say(f"{seconds:.0f} s are over: what was measured is kept, and a further run goes on")
            return
        records.add(cell.name, _pair(engines, cell, number, vocabulary))


def _turns(cells: list[Cell], records: Records, pairs: int) -> Iterator[tuple[int, Cell]]:
    """Yield round after round over all cells, so that each has some however early it ends."""
    for number in range(pairs):
        yield from ((number, cell) for cell in cells if len(records.pairs(cell.name)) <= number)


def _pair(engines: Mapping[str, Runs], cell: Cell, number: int, vocabulary: int) -> Arms:
    # Both get one batch, so that they make the same steps; each keeps a prefix cache of its own, which never saw it.
    chance = random.Random(f"{cell.name} {number}")  # noqa: S311 - makes work, guards nothing
    prompts = _prompts(chance, cell, vocabulary)
    arms: Arms = {}
    for name in chance.sample(sorted(engines), len(engines)):
        arms[name] = {figure: median(each) for figure, each in engines[name].run(prompts, OUTPUT_TOKENS).items()}
    return arms


def _prompts(chance: random.Random, cell: Cell, vocabulary: int) -> list[list[int]]:
    return [[chance.randrange(10, vocabulary) for _ in range(cell.prompt_tokens)] for _ in range(cell.at_once)]
