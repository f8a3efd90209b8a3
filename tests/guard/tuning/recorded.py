"""Recorded decisions, made in memory or in a store."""

from datetime import timedelta

import numpy as np

from guard.store.batch import Batches
from guard.store.label import GivenLabel, Label, Labels
from guard.store.stored import StoredDecision
from guard.tuning.recent import Recent
from guard.verdict import Action, Mode
from tests.guard.store.traffic import START

LETTERS = {"b": Label.BENIGN, "h": Label.HARMFUL, "u": Label.UNSURE, "-": None}


def in_memory(columns, labels=None, chances=None, **words):
    """Decisions with these scores, the newest first; labels by their first letters."""
    count = len(next(iter(columns.values())))

    def objects(values):
        found = np.full(count, None, dtype=object)
        found[:] = values
        return found

    nothing = [None] * count
    named = {name: objects(words.get(name, nothing)) for name in ("rules", "tenants", "routes", "models", "unscored")}
    return Recent(
        keys=np.arange(count, 0, -1, dtype=np.int64) * 1_000_003,
        columns={name: np.asarray(column, dtype=np.float64) for name, column in columns.items()},
        actions=objects(words.get("actions", [Action.ALLOW] * count)),
        judged=objects(words.get("judged", ["prompt"] * count)),
        policies=objects(words.get("policies", ["p@1"] * count)),
        digests=objects(words.get("digests", nothing)),
        prompt_tokens=np.ones(count, dtype=np.int64),
        sources=objects(words.get("sources", ["review"] * count)),
        labels=objects([LETTERS[letter] for letter in labels or "-" * count]),
        chances=np.full(count, np.nan) if chances is None else np.asarray(chances, dtype=np.float64),
        **named,
    )


def in_store(engine, scores, labels=None, chances=None, start=0, **words):
    """Write a decision for each of `scores` (one mapping each), one a second; return their event ids, oldest first.

    `words` are of all of them, or functions of the number.
    """
    made = []
    for number, each in enumerate(scores, start):
        about = {name: word(number) if callable(word) else word for name, word in words.items()}
        action = about.pop("action", Action.ALLOW)
        about = {"policy": "p@1", "mode": Mode.ENFORCE, "at": START + timedelta(seconds=number)} | about
        made.append(StoredDecision(f"fge_{number}", action, action, scores=each, **about))
    Batches(engine).write(made)
    given = [
        GivenLabel(each.event_id, LETTERS[letter], "ada", "review", None if chances is None else chances[place])
        for place, (each, letter) in enumerate(zip(made, labels or "-" * len(made), strict=True))
        if LETTERS[letter] is not None
    ]
    if given:
        Labels(engine).give(given)
    return [each.event_id for each in made]
