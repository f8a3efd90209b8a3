"""Near-duplicates: requests of one split that are almost those of another, and so flatter the numbers.

Two texts are compared by the Jaccard similarity of their sets of five-letter shingles. MinHash signatures in bands
(Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3) find the pairs worth comparing, so that time and
memory grow with the number of prompts and not with its square.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.prompts.prompt_file import PromptFile

SIMILAR = 0.8
"""Jaccard similarity from which two requests count as the same: one changed word in ten or so."""
_SHINGLE = 5
_BANDS, _ROWS = 24, 5
"""A pair at 0.8 shares a band with probability 1 - (1 - 0.8^5)^24 = 0.9999; one at 0.3 with 0.06."""
_MOST_COMPARED = 4
"""Prompts of one file that a band's bucket holds: thousands that share one wrapper are not compared with each other."""
_PRIME = (1 << 61) - 1
_MODULUS = 1 << 32
_SEED = 20_260


Place = tuple[int, int]
"""A prompt: which file of the sequence, and its line there."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """One pair, the first of an earlier file."""

    first: Place
    second: Place
    similarity: float


def near_duplicates(files: Sequence[PromptFile]) -> list[NearDuplicate]:
    """Return, for every prompt, the most similar of an earlier file's that it was compared with, if at `SIMILAR` or
    above.

    In the order of files and lines. Prompts are compared as they are read: case and runs of blanks make no difference.
    """
    places = [(index, prompt.line) for index, file in enumerate(files) for prompt in file.prompts]
    sets = [_shingles(prompt.text) for file in files for prompt in file.prompts]
    best: dict[int, tuple[float, int]] = {}
    for earlier, later in _candidates(sets, [index for index, _ in places]):
        similarity = _jaccard(sets[earlier], sets[later])
        if similarity >= SIMILAR and similarity > best.get(later, (0.0, 0))[0]:
            best[later] = (similarity, earlier)
    return [
        NearDuplicate(places[earlier], places[later], similarity)
        for later, (similarity, earlier) in sorted(best.items())
    ]


def leakage_notes(files: Sequence[PromptFile]) -> list[str]:
    """Return a sentence for each file that holds near-copies of an earlier one's prompts."""
    found = near_duplicates(files)
    notes = []
    for index, file in enumerate(files):
        copies = [pair for pair in found if pair.second[0] == index]
        if copies:
            (other, line), (_, own) = copies[0].first, copies[0].second
            notes.append(
                f"{len(copies)} of {len(file.prompts)} prompts of {file.name} are near-copies of an earlier split's, "
                f"which flatters its numbers: {file.name}:{own} is {copies[0].similarity:.0%} like "
                f"{files[other].name}:{line}"
            )
    return notes


def _shingles(text: str) -> npt.NDArray[np.uint64]:
    """Return the set of hashes of a text's shingles, sorted."""
    plain = " ".join(text.lower().split())
    pieces = {plain[start : start + _SHINGLE] for start in range(max(len(plain) - _SHINGLE + 1, 1))}
    return np.unique(np.fromiter((zlib.crc32(piece.encode()) for piece in pieces), dtype=np.uint64))


def _jaccard(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _candidates(sets: Sequence[npt.NDArray[np.uint64]], files: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of different files that agree in a whole band of their signatures, each at least once."""
    bands = _signatures(sets).reshape(len(sets), _BANDS, _ROWS)
    for band in range(_BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for row, key in enumerate(np.ascontiguousarray(bands[:, band])):
            bucket = buckets[key.tobytes()]
            others = [other for other in bucket if files[other] != files[row]]
            yield from ((other, row) for other in others)
            if len(bucket) - len(others) < _MOST_COMPARED:
                bucket.append(row)


def _signatures(sets: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """Return MinHash signatures `[N, bands * rows]`: the least of `(a x + b) mod p mod 2^32` over each set."""
    rng = np.random.default_rng(_SEED)
    # Shingles have 32 bits and a has 29, so that a x + b never overflows 64.
    factor = rng.integers(1, 1 << 29, size=(_BANDS * _ROWS, 1), dtype=np.uint64)
    shift = rng.integers(0, 1 << 60, size=(_BANDS * _ROWS, 1), dtype=np.uint64)
    prime, modulus = np.uint64(_PRIME), np.uint64(_MODULUS)
    return np.stack([((factor * each + shift) % prime % modulus).min(axis=1) for each in sets])
