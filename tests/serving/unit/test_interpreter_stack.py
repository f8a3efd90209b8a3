"""No call under a worker's loop pays for a new piece of the interpreter's stack."""

import resource
import threading
from functools import cache
from types import SimpleNamespace

import pytest

from serving.worker import interpreter_stack
from serving.worker.interpreter_stack import make_room, with_room

CALLS, DEEPEST = 500, 400


def leaf():
    """A call made for every layer, whose frame is larger than what lies between two depths."""


leaf.__code__ = leaf.__code__.replace(co_stacksize=64)


def faults_at(depth):
    """Page faults of `CALLS` calls that are made from `depth` frames further down."""
    if depth:
        return faults_at(depth - 1)
    leaf()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(CALLS):
        leaf()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def most_faults(count):
    """The most of all depths, counted by a thread of its own: it has a stack of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(count(depth) for depth in range(DEEPEST)))
    thread.start()
    thread.join()
    return max(found)


def test_calls_from_a_frame_with_room_begin_no_piece_at_any_depth():
    """Without it there is a depth at which every call does: a page fault each."""
    assert most_faults(faults_at) >= CALLS
    assert most_faults(with_room(faults_at)) < CALLS / 10


def test_each_loop_is_given_room_once(monkeypatch):
    """A worker that is loaded again, or two in a process, change nothing more; what the loop is given and gives stays."""
    owner = SimpleNamespace(loop=lambda *args, **kwargs: (args, kwargs))
    monkeypatch.setattr(interpreter_stack, "_LOOPS", [(owner, "loop")])
    make_room = cache(interpreter_stack.make_room.__wrapped__)
    make_room()
    once = owner.loop
    assert once(1, two=2) == ((1,), {"two": 2})
    make_room()
    assert owner.loop is once


@pytest.mark.parametrize(("owner", "name"), interpreter_stack._LOOPS)
def test_vllms_loops_run_with_room(owner, name):
    """Though vLLM wraps one of them itself."""
    make_room()
    assert getattr(owner, name).__code__.co_stacksize == interpreter_stack._ROOM
