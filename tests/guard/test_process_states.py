"""Every process that lives says what it goes by; those that are gone are not counted."""

import os
import time

from guard.process_states import STALE_S, ProcessState, forget, states, tell


def state(pid, **about):
    """The state of a process."""
    return ProcessState(pid=pid, policy="p@1", digest="d", since=1.0, **about)


def test_the_last_word_of_each_process_counts(tmp_path):
    """In the order of their numbers."""
    for each in (state(7), state(3), state(7, problem="not YAML")):
        tell(tmp_path / "processes", each)
    assert [(each.pid, each.problem) for each in states(tmp_path / "processes")] == [(3, None), (7, "not YAML")]


def test_a_process_that_is_gone_is_not_counted(tmp_path):
    """It took its file away, or has not written it for long."""
    tell(tmp_path, state(1, seen=time.time() - STALE_S - 1))
    tell(tmp_path, state(os.getpid()))
    assert [each.pid for each in states(tmp_path)] == [os.getpid()]
    forget(tmp_path)
    assert states(tmp_path) == []
    forget(tmp_path)


def test_what_is_no_state_is_passed_over(tmp_path):
    """A file that is half written, or somebody else's."""
    (tmp_path / "5.json").write_text('{"pid": 5')
    (tmp_path / "6.json").write_text("[]")
    assert states(tmp_path) == []
    assert states(tmp_path / "nowhere") == []
