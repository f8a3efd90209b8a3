"""A stage is computed once for the same arguments, and anew for any other; what is half written counts for nothing."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.pipeline.kept import WORK, Kept, Work, json_codec, key_of
from probes.errors import CalibrationError

NUMBERS = json_codec(list[int])
PLAIN = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())


@pytest.fixture
def work(tmp_path):
    """The work for an artifact."""
    return Work.beside(tmp_path / "artifact", "model", "prompts")


def test_the_same_question_is_answered_from_its_file(work):
    """Also in another run; one argument more or less, or another's key, asks again."""
    asked = []

    def compute(*arguments):
        asked.append(arguments)
        return [len(asked)]

    first = work.keep("count", NUMBERS, compute, 1, "a")
    again = Work(work.folder).keep("count", NUMBERS, compute, 1, "a")
    other = work.keep("count", NUMBERS, compute, 1, "b")
    further = [work.keep("further", NUMBERS, compute, each) for each in (first, again, other)]
    assert (first, asked[:2]) == (again, [(1, "a"), (1, "b")])
    assert [each.value for each in further] == [[3], [3], [4]]
    assert asked[2:] == [([1],), ([2],)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PLAIN, max_size=3), st.lists(PLAIN, max_size=3))
def test_different_arguments_have_different_keys(one, other):
    """Neither their number, nor their order, nor how they are divided can make two questions one."""
    same = [type(each) for each in one] == [type(each) for each in other] and one == other
    assert (key_of("stage", *one) == key_of("stage", *other)) == same


def test_a_kept_argument_counts_by_its_key():
    """What it was made from decides, and not what it is."""
    assert key_of("stage", Kept([1], "a")) == key_of("stage", Kept([2], "a"))
    assert key_of("stage", Kept([1], "a")) != key_of("stage", Kept([1], "b"))
    assert key_of("stage", Kept([1], "a")) != key_of("stage", "a")


def test_a_stage_that_fails_leaves_nothing(work):
    """The next run computes it."""

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.keep("stage", NUMBERS, fails)
    assert not list(work.folder.iterdir())
    assert work.keep("stage", NUMBERS, lambda: [1]).value == [1]


def test_work_is_named_by_what_its_stages_are_not_told(tmp_path):
    """Another model or other prompts have a folder of their own, and the last one takes the common folder with it."""
    one, other = Work.beside(tmp_path / "a", "model"), Work.beside(tmp_path / "a", "other model")
    assert one.folder != other.folder
    one.forget()
    assert other.folder.exists()
    other.forget()
    assert not (tmp_path / WORK).exists()


def test_a_folder_has_one_process_at_work(work):
    """Another one is told to wait, until the first has ended."""
    with work.alone():
        with pytest.raises(CalibrationError) as caught, Work(work.folder).alone():
            pass
        assert "another calibration" in caught.value.problem
    with Work(work.folder).alone():
        work.forget()
