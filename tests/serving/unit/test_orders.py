"""What a step costs the guard in the engine's process: something for each request in it, nothing for those that wait."""

from types import SimpleNamespace

import pytest

from probes.template import whole
from serving.core.orders import OrderBook
from serving.core.scheduled import scheduled_of
from serving.wire import NO_ORDERS, ORDERS, Due

WAITING = 1000


class Unwalked(dict):
    """Fails who goes through it."""

    def _fail(self, *_):
        raise AssertionError("the whole queue was gone through")

    __iter__ = keys = items = values = _fail


def request(name, computed=0, tokens=20):
    return SimpleNamespace(request_id=name, num_prompt_tokens=tokens, num_computed_tokens=computed)


@pytest.fixture
def book():
    """Orders for a scheduler whose requests hold blocks 1 and 2, of 16 tokens."""
    group = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16))
    scheduler = SimpleNamespace(
        kv_cache_config=SimpleNamespace(kv_cache_groups=[group]),
        kv_cache_manager=SimpleNamespace(get_block_ids=lambda _name: ([1, 2],)),
        connector=None,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("serving.core.orders.scoring_group", lambda _config: 0)
        yield OrderBook(scheduler)


def give(book, scheduled, **watched):
    step = SimpleNamespace(num_scheduled_tokens=scheduled, kv_cache_block_copies=None)
    book.give(step, watched)
    return getattr(step, ORDERS, NO_ORDERS)


def test_what_waits_is_not_gone_through(book):
    """The step finishes one prompt and a chunk of another; a thousand more wait, some of them steered before."""
    book._open, book._steered = Unwalked(), Unwalked()
    for number in range(WAITING):
        book.open(request(f"waiting{number}"), (whole(20),))
        book.steer(request(f"preempted{number}"), [1.0], 3)
    book.open(request("done", computed=20), (whole(20),), subject=1)
    book.open(request("chunk", computed=16), (whole(20),))
    book.steer(request("steered"), [0.5], 7)
    orders = give(book, {"chunk": 16, "done": 20, "steered": 1, "plain": 1})
    assert orders.due == {"done": Due((whole(20),), [1, 2], 1)}
    assert {name: each.begin for name, each in orders.steering.items()} == {"steered": 7}


def test_what_is_steered_no_more_is_not(book):
    """And may be again."""
    book.steer(request("r"), [0.5], 7)
    book.steer_no_more(request("r"))
    assert not book.steers(request("r"))
    assert give(book, {"r": 1}).steering == {}
    book.steer(request("r"), [0.5], 9)
    assert give(book, {"r": 1}).steering["r"].begin == 9


def test_no_answer_is_read_before_its_prompt_is_whole(book):
    """Even one that begins in the prompt; from then on, and after a preemption, it is, decided on or not."""
    for name, computed in (("chunk", 16), ("done", 20), ("ahead", 21)):
        book.open(request(name, computed), (whole(20),))
    names = ("chunk", "done", "ahead", "decided")
    assert give(book, dict.fromkeys(names, 1), **dict.fromkeys(names, 12)).watched == dict.fromkeys(names[1:], 12)


@pytest.mark.parametrize("held", [[], ["a"], ["c", "a"], ["x", "a", "y", "c", "z", "b"]])
def test_scheduled_of_is_what_both_have(held):
    """In an order that does not hang on chance."""
    scheduled = {"a": 1, "b": 1, "c": 1}
    found = scheduled_of(dict.fromkeys(held), scheduled)
    assert set(found) == set(held) & set(scheduled)
    assert found == [name for name in (held if len(held) < 3 else scheduled) if name in found]
