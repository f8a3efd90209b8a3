"""A rollout over a fleet: what the store says of each replica is what that replica last decided by."""

import pytest

from benchmarks.fleet import roll_out


@pytest.mark.parametrize("seed", range(3))
def test_the_store_tells_the_truth_at_each_moment(tmp_path, seed):
    """With delays, losses, a crash, a stale file and clocks that are off: no wrong statement, nobody left out, and the
    one with the stale file is named.
    """
    found = roll_out(tmp_path, 60, seed)
    assert (found.wrong, found.silent) == (0, 0)
    assert found.stale == ("pod-0002",)
    assert found.told_after <= 35  # the one that crashed comes back 30 s after the change
