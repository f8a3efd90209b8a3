"""A policy file changes in many ways: each content is told of once, and none that is half written."""

import os
from pathlib import Path

import pytest

from guard.watched_file import WatchedFile


@pytest.fixture
def path(tmp_path):
    """A file that holds `one`."""
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def file(path):
    """The watched file, whose first content was told of."""
    file = WatchedFile(path)
    assert looks(file) == [b"one"]
    return file


def looks(file, number=3):
    """What so many looks tell."""
    return [found for found in (file.look() for _ in range(number)) if found is not None]


def test_a_new_content_is_told_of_once(file, path):
    """At the second look that finds it."""
    path.write_bytes(b"two")
    assert file.look() is None
    assert file.look() == b"two"
    assert looks(file) == []


def test_the_same_content_is_no_change(file, path):
    """Whatever its time, and whichever file it is in."""
    os.utime(path, (1, 1))
    assert looks(file) == []
    (path.parent / "copy").write_bytes(b"one")
    (path.parent / "copy").replace(path)
    assert looks(file) == []


def test_what_is_still_being_written_is_not_told_of(file, path):
    """A longer content at each look: only the last is told."""
    for end in range(1, 6):
        path.write_bytes(b"two and a half"[: 2 * end])
        assert file.look() is None
    path.write_bytes(b"two and a half")
    assert looks(file) == [b"two and a half"]


def test_a_content_that_came_and_went_is_no_change(file, path):
    """Between two looks."""
    path.write_bytes(b"two")
    assert file.look() is None
    path.write_bytes(b"one")
    assert looks(file) == []


def test_links_are_followed_as_a_configmap_exchanges_them(tmp_path):
    """Kubernetes writes a new folder, and exchanges the link `..data` that leads to it; the file is a link into it."""
    for number in range(3):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "policy.yaml").write_text(f"{number}")
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "policy.yaml").symlink_to(Path("..data") / "policy.yaml")
    file = WatchedFile(tmp_path / "policy.yaml")
    assert looks(file) == [b"0"]
    for number in (1, 2):
        (tmp_path / "..new").symlink_to(f"..{number}")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert looks(file) == [f"{number}".encode()]


def test_a_hundred_changes_end_with_the_last(file, path):
    """Those that nobody looked at in time are passed over."""
    told = []
    for number in range(100):
        path.write_text(f"{number}")
        if number % 7 == 0:
            told += looks(file, 1)
    assert told == []
    assert looks(file) == [b"99"]


def test_a_file_that_cannot_be_read_is_told_of_once(file, path):
    """When it is missing twice in a row: between the two steps of an exchange it may be missing once."""
    path.unlink()
    assert file.look() is None
    with pytest.raises(FileNotFoundError):
        file.look()
    assert looks(file) == []
    path.write_bytes(b"one")
    assert looks(file) == [b"one"]


def test_a_file_that_is_empty_says_so(file, path):
    """It is a content like any other: whoever reads it says what is wrong."""
    path.write_bytes(b"")
    assert looks(file) == [b""]


def test_what_was_forgotten_is_told_of_again(file):
    """For whoever could not take it in."""
    file.forget()
    assert looks(file) == [b"one"]
