"""Long work says how far it is on standard error, in a terminal and in a log."""

import os
import pty
import re
import subprocess
import sys

import pytest

from calibration.prompts import progress
from calibration.prompts.progress import stage, track

_WORK = """
from calibration.prompts.progress import stage, track
with stage("reading"):
    print(sum(track(range(5), "a part")))
"""


def test_a_stage_says_what_it_was_and_how_long_it_took(capsys):
    """One line on standard error once it is done, and nothing on standard output."""
    with stage("fitting probes"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"fitting probes: \d+\.\d s\n", err)


def test_a_stage_that_fails_is_not_said_to_be_done(capsys):
    """The error speaks for itself."""
    with pytest.raises(ValueError, match="no"), stage("fitting probes"):
        raise ValueError("no")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("total", "said"), [(None, "3 of 3"), (7, "3 of 7")])
def test_a_log_gets_a_line_from_time_to_time(capsys, monkeypatch, total, said):
    """It says how many are done, of how many, and for how long it has run; every item still comes."""
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    assert list(track("abc", "scoring", total)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(rf"  scoring: {said}, \d+ s", lines[-1])


def test_short_work_leaves_no_line_in_a_log(capsys):
    """Work of less than half a minute is told of by its stage alone."""
    assert list(track(iter("abc"), "scoring")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes_and_a_line_that_stays():
    """Through a real pseudo-terminal: the bar is drawn, and the stage's line is the last thing on the screen."""
    leader, follower = pty.openpty()
    ran = subprocess.run([sys.executable, "-c", _WORK], stdout=subprocess.PIPE, stderr=follower, check=True)
    os.close(follower)
    screen = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert ran.stdout == b"10\n"
    assert "a part" in screen
    assert re.search(r"reading: \d+\.\d s\s*$", screen)
