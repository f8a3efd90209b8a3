"""An update is compared request by request: what flips is named, and chance is told from harm."""

import json

import numpy as np
import pytest

from calibration.audits.updates.flips import Decided, compare
from calibration.prompts.prompt_file import Message, Prompt
from guard.verdict import Action

ALPHA = 0.05


def prompt(number, is_harmful):
    """One request."""
    return Prompt(f"p{number}", number, (Message(role="user", content=f"request {number}"),), is_harmful, None, None)


def decided(actions):
    """How requests are decided."""
    return [Decided(action, "r" if action is not Action.ALLOW else None, {"harm": 1.0}) for action in actions]


def update(rows, stops=Action.BLOCK):
    """The comparison of rows of (is harmful, before, after)."""
    prompts = [prompt(number, row[0]) for number, row in enumerate(rows)]
    return compare(prompts, decided(row[1] for row in rows), decided(row[2] for row in rows), stops)


def test_flips_are_named_and_those_for_the_worse_come_first():
    """Harmful ones before harmless ones; what is decided alike is no flip."""
    allow, flag, block = Action.ALLOW, Action.FLAG, Action.BLOCK
    rows = [
        (False, block, allow),
        (True, allow, block),
        (False, allow, block),
        (True, block, flag),
        (True, block, block),
        (False, allow, flag),
    ]
    found = update(rows)
    assert [flip.prompt.id for flip in found.flips] == ["p3", "p2", "p1", "p0"]
    assert [flip.is_negative for flip in found.flips] == [True, True, False, False]
    assert (found.harmful.num_negative, found.harmful.num_positive) == (1, 1)
    assert (found.harmless.num_stopped_before, found.harmless.num_stopped_after) == (1, 1)
    assert [flip.prompt.id for flip in update(rows, Action.FLAG).flips] == ["p2", "p5", "p1", "p0"]


def test_the_test_is_exact():
    """By the binomial distribution: 8 of 8 flips for the worse are 1 in 256, 5 of 8 are no news, none is 1."""
    allow, block = Action.ALLOW, Action.BLOCK
    assert update([(True, block, allow)] * 8).harmful.p_value == pytest.approx(1 / 256)
    mixed = update([(True, block, allow)] * 5 + [(True, allow, block)] * 3)
    assert mixed.harmful.p_value == pytest.approx(93 / 256)
    assert update([(True, block, block)] * 8).harmful.p_value == 1.0
    assert not mixed.is_worse(ALPHA)


def test_an_update_that_is_no_worse_is_seldom_called_so():
    """Of 2,000 updates that flip by chance at most alpha are called worse, within three standard errors."""
    rng, called = np.random.default_rng(0), 0
    pairs = [(Action.ALLOW, Action.BLOCK), (Action.BLOCK, Action.ALLOW)]
    for _ in range(2000):
        rows = [(bool(rng.integers(2)), *pairs[rng.integers(2)]) for _ in range(30)]
        called += update(rows).is_worse(ALPHA)
    assert called / 2000 <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 2000) ** 0.5


def test_an_update_that_is_worse_is_called_so():
    """Of either label: what is lost, and what is stopped for nothing."""
    allow, block = Action.ALLOW, Action.BLOCK
    same = [(True, block, block)] * 40 + [(False, allow, allow)] * 40
    assert update([*same, *[(True, block, allow)] * 7]).is_worse(ALPHA)
    assert update([*same, *[(False, allow, block)] * 7]).is_worse(ALPHA)
    assert not update([*same, *[(True, allow, block)] * 7, *[(False, block, allow)] * 7]).is_worse(ALPHA)


def test_the_file_has_every_flip_and_no_text():
    """A request is found by its line."""
    told = json.loads(update([(True, Action.BLOCK, Action.ALLOW)]).to_json())
    [flip] = told["flips"]
    assert (flip["line"], flip["for_the_worse"], flip["before"]["decision"]) == (0, True, "block")
    assert told["harmful"]["num_negative"] == 1
    assert "request 0" not in json.dumps(told)
