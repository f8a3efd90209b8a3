"""A decision as a row of numbers, and back."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guard.store.row_key import row_key, time_of
from guard.store.schema import WORDS
from guard.store.stored import StoredDecision
from guard.verdict import Action, Mode, Unscored

ROW_ERRORS = (AttributeError, TypeError, ValueError, OverflowError, struct.error)
LONGEST = 500
"""Characters of a word or an id that are kept. Request ids are the client's choice."""
_PLAIN = ("prompt_tokens", "answer_tokens", "seconds", "decision_seconds")
_KINDS = {"decision": Action, "action": Action, "would": Action, "mode": Mode, "unscored": Unscored}


@dataclass(frozen=True, slots=True)
class Row:
    """A row whose words have no numbers yet."""

    values: dict[str, Any]
    words: dict[str, str]
    """By column."""
    probes: str | None
    """As the dictionary of probe sets has them; None for a decision without scores."""

    def numbered(self, numbers: Mapping[str, int], probe_sets: Mapping[str, int]) -> dict[str, Any]:
        """Return the row as it is written, with these numbers for its words."""
        found = {name: numbers[word] for name, word in self.words.items()}
        return dict.fromkeys(WORDS) | self.values | found | {"probes": probe_sets[self.probes] if self.probes else None}


def to_row(decision: StoredDecision) -> Row:
    """Return the row of a decision. What it raises for one that holds no such values is `ROW_ERRORS`."""
    words = {name: getattr(decision, name) for name in WORDS}
    event_id = clean(decision.event_id)
    values = {name: getattr(decision, name) for name in _PLAIN}
    values["key"] = row_key(decision.at, event_id)
    values["event_id"] = event_id
    values["request_id"] = clean(decision.request_id)
    values["scores"] = pack(decision.scores) if decision.scores else None
    probes = json.dumps(sorted(decision.scores)) if decision.scores else None
    return Row(values, {name: clean(word) for name, word in words.items() if word is not None}, probes)


def clean(word: str) -> str:
    """Return a word as every database takes it: without NUL and broken characters, and not without end."""
    if not word.isascii():
        word = word.encode("utf-8", "replace").decode()
    return word.replace("\0", "\ufffd")[:LONGEST]


def from_row(row: Mapping[str, Any], words: Mapping[int, str], probe_sets: Mapping[int, str]) -> StoredDecision:
    """Return the decision of a row."""
    about: dict[str, Any] = {name: words[row[name]] if row[name] is not None else None for name in WORDS}
    about.update((name, kind(about[name])) for name, kind in _KINDS.items() if about[name] is not None)
    about.update((name, row[name]) for name in (*_PLAIN, "event_id", "request_id"))
    names = json.loads(probe_sets[row["probes"]]) if row["probes"] is not None else []
    return StoredDecision(at=time_of(row["key"]), scores=unpack(names, row["scores"]), **about)


def pack(scores: Mapping[str, float]) -> bytes:
    """Return scores as doubles, little-endian, in the order of their probes' names."""
    return struct.pack(f"<{len(scores)}d", *(scores[name] for name in sorted(scores)))


def unpack(names: Sequence[str], packed: bytes | None) -> dict[str, float]:
    """Return what `pack` packed; nothing of None."""
    return dict(zip(names, struct.unpack(f"<{len(names)}d", packed), strict=True)) if packed else {}
