"""The audit log is only ever appended to, and each text is kept once."""

import pytest

from guard.policy_history import Change, PolicyHistory, revision_of
from probes.errors import PolicyError


def record(history, content, before=None, who="ada"):
    """Write down that someone put this content in force."""
    change = Change(who=who, what="applied", revision=revision_of(content), before=before, label="p@1")
    history.record(change, content)
    return change


def test_changes_and_texts_come_back(tmp_path):
    """The last change first; another object finds the same."""
    history = PolicyHistory(tmp_path)
    assert history.changes() == []
    one = record(history, b"one")
    two = record(history, b"two", one.revision)
    three = record(history, b"one", two.revision)
    assert PolicyHistory(tmp_path).changes() == [three, two, one]
    assert history.text(two.revision) == b"two"
    assert len(list((tmp_path / "policies").iterdir())) == 2


def test_earlier_lines_are_never_written_again(tmp_path):
    """What was there stays byte for byte."""
    history = PolicyHistory(tmp_path)
    for number in range(5):
        before = (tmp_path / "audit.jsonl").read_bytes() if number else b""
        record(history, b"%d" % number)
        assert (tmp_path / "audit.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_a_crash_cut_off_costs_itself_alone(tmp_path, cut):
    """The next one is a line of its own."""
    history = PolicyHistory(tmp_path)
    one = record(history, b"one")
    record(history, b"two")
    log = tmp_path / "audit.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    three = record(history, b"three")
    assert history.changes()[0] == three
    assert history.changes()[-1] == one


@pytest.mark.parametrize("revision", ["", "0" * 16, "../audit", "../../etc/passwd", "a" * 17])
def test_a_revision_is_one_of_the_history(tmp_path, revision):
    """Nothing else in the file system is."""
    record(PolicyHistory(tmp_path), b"one")
    with pytest.raises(PolicyError, match="no revision"):
        PolicyHistory(tmp_path).text(revision)


def test_a_history_that_cannot_be_written_says_so(tmp_path):
    """Before anything is changed."""
    (tmp_path / "policies").write_text("in the way")
    with pytest.raises(OSError, match="policies"):
        record(PolicyHistory(tmp_path), b"one")
    assert PolicyHistory(tmp_path).changes() == []
