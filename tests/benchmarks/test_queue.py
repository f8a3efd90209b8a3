"""The queue's benchmark steps two real schedulers, and both do the same work."""

from benchmarks.queue import WAITING, Steps, _guard, compare
from serving.core.gate import GuardedScheduler


def test_a_step_is_timed_with_and_without_the_gate(tmp_path):
    """A pair for each step, with more requests waiting than run; the table goes up to 50,000."""
    bare, guarded = compare(_guard(tmp_path), running=4, waiting=12, steps=5)
    assert len(bare) == len(guarded) == 5
    assert min(bare + guarded) > 0
    assert max(WAITING) == 50_000


def test_who_runs_is_decided_and_who_waits_is_not(tmp_path):
    """Requests in mid-answer have passed the gate, so that a step finds nothing left to do about them."""
    steps = Steps(GuardedScheduler, _guard(tmp_path), 4)
    steps.queue(12)
    steps.step()
    gate = steps._scheduler
    assert len(gate.running) == 4
    assert len(gate.waiting) == 12
    assert [gate._cases.is_quiet(request.request_id) for request in (*gate.running, *gate.waiting)] == [True] * 4 + [
        False
    ] * 12
