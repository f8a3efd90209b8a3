"""What a step costs the guard in the engine's process: something for each request in it, nothing for those that
wait.
"""

from types import SimpleNamespace

import pytest

from probes.template import whole
from serving.core.case import Case, Cases, Crossing
from serving.core.orders import OrderBook
from serving.wire import NO_ORDERS, ORDERS, Due, Steer

WAITING = 1000


class Unwalked(dict):
    """Fails who goes through it."""

    def _fail(self, *_):
        raise AssertionError("the whole queue was gone through")

    __iter__ = keys = items = values = _fail


def case(name, computed=0, tokens=20, **known):
    request = SimpleNamespace(request_id=name, num_prompt_tokens=tokens, num_computed_tokens=computed)
    return Case(request, **{"subject": 0, "turns": (whole(tokens),)} | known)


def decided(name, **known):
    """A case whose prompt passed."""
    made = case(name, computed=20, **known)
    made.verdict, made.is_acted_on = object(), True
    return made


@pytest.fixture
def cases():
    """Cases that fail who goes through all of them."""
    made = Cases()
    made._all = Unwalked()
    return made


@pytest.fixture
def orders_of(cases):
    """A maker of a step's orders, for a scheduler whose requests hold blocks 1 and 2, of 16 tokens."""
    group = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16))
    scheduler = SimpleNamespace(
        kv_cache_config=SimpleNamespace(kv_cache_groups=[group]),
        kv_cache_manager=SimpleNamespace(get_block_ids=lambda _name: ([1, 2],)),
        connector=None,
    )

    def orders_of(**scheduled):
        step = SimpleNamespace(num_scheduled_tokens=scheduled, kv_cache_block_copies=None)
        book.attach_to(step)
        return getattr(step, ORDERS, NO_ORDERS)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("serving.core.orders.scoring_group", lambda _config: 0)
        book = OrderBook(scheduler, cases)
        yield orders_of


def test_what_waits_is_not_gone_through(cases, orders_of):
    """The step finishes one prompt and a chunk of another; a thousand more wait, some of them steered before."""
    for number in range(WAITING):
        cases.open(case(f"waiting{number}"))
        cases.open(decided(f"preempted{number}", steering=Steer([1.0], 3)))
    cases.open(case("done", computed=20, subject=1))
    cases.open(case("chunk", computed=16))
    cases.open(decided("steered", steering=Steer([0.5], 7)))
    cases.open(decided("plain"))
    orders = orders_of(chunk=16, done=20, steered=1, plain=1)
    assert orders.due == {"done": Due((whole(20),), [1, 2], 1)}
    assert orders.steering == {"steered": Steer([0.5], 7)}
    assert not orders.watched


def test_no_answer_is_read_before_its_prompt_is_whole(cases, orders_of):
    """Even one that begins in the prompt; from then on, and after a preemption, it is, decided on or not."""
    for name, computed in (("chunk", 16), ("done", 20), ("ahead", 21)):
        cases.open(case(name, computed, answer_begin=12))
    cases.open(decided("decided", answer_begin=12))
    found = orders_of(chunk=1, done=1, ahead=1, decided=1).watched
    assert found == dict.fromkeys(("done", "ahead", "decided"), 12)


LEFT_TO_DO = {
    "untold": {"prompt": "p"},
    "held_logprobs": (None,),
    "steering": Steer([0.5], 7),
    "answer_begin": 12,
    "crossing": Crossing(None, 1, 2),
}


@pytest.mark.parametrize("left", LEFT_TO_DO)
def test_a_case_is_quiet_when_nothing_is_left_to_do(cases, left):
    """Undecided, unacted on, or with anything left, it is not; nor is a request that nobody knows."""
    quiet, busy = decided("quiet"), decided("busy", **{left: LEFT_TO_DO[left]})
    for each in (quiet, busy, case("new")):
        cases.settle(cases.open(each))
    names = ("quiet", "busy", "new", "unknown")
    assert [name for name in names if cases.is_quiet(name)] == ["quiet"]
    assert cases.active(dict.fromkeys(names)) == [busy, cases.get("new")]
    assert cases.active({"quiet": 1}) == []
    assert cases.are_quiet({"quiet": 1})
    assert not any(cases.are_quiet({"quiet": 1, name: 1}) for name in names[1:])


def test_a_case_that_begins_again_is_not_quiet(cases):
    """A session asks for something new: that is yet to be decided. One that is over is known no longer."""
    cases.settle(cases.open(decided("r")))
    again = cases.open(case("r"))
    assert not cases.is_quiet("r")
    assert cases.close("r") is again
    assert cases.close("r") is None
    cases.settle(cases.open(decided("r")))
    cases.close("r")
    assert (len(cases), cases.is_quiet("r"), cases.get("r")) == (0, False, None)
