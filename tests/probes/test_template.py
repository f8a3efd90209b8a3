"""The chat template as token ids: turns and endings, whatever route or field made the prompt."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.readout import Readout
from probes.template import MOST_TURNS, Ending, Template, Turn, whole

BEGIN, USER, ASSISTANT, END, LINE, SYSTEM = 1, 4, 5, 2, 9, 3
TAIL = (END, LINE, ASSISTANT, LINE)
PREFIX, NEXT = (BEGIN, USER, LINE), (END, LINE, USER, LINE)
TEMPLATE = Template(
    tail=TAIL, frames=(PREFIX, TAIL, NEXT), special=(BEGIN, USER, ASSISTANT, END, SYSTEM), closings=((50, 51),)
)
WORDS = st.lists(st.integers(10, 40), min_size=1, max_size=6)


def conversation(*contents):
    """Token ids of a conversation that begins with the user, without what opens the next answer."""
    ids = list(PREFIX)
    for number, content in enumerate(contents):
        ids += [*([] if number == 0 else TAIL if number % 2 else NEXT), *content]
    return ids


@given(contents=st.lists(WORDS, min_size=1, max_size=7).filter(lambda each: len(each) % 2))
def test_each_user_turn_ends_where_an_answer_is_opened(contents):
    """Turns follow each other without a gap, each ends with the tail, and none is open."""
    ids = [*conversation(*contents), *TAIL]
    turns, ending = TEMPLATE.read(ids)
    assert ending is Ending.TEMPLATE
    assert len(turns) == (len(contents) + 1) // 2
    assert [turn.start for turn in turns] == [0, *(turn.stop for turn in turns[:-1])]
    assert all(tuple(ids[turn.stop - 4 : turn.stop]) == TAIL and not turn.is_open for turn in turns)


@given(contents=st.lists(WORDS, min_size=1, max_size=5).filter(lambda each: len(each) % 2), data=st.data())
def test_a_turn_is_the_same_however_the_conversation_goes_on(contents, data):
    """What was read of the first turns is what is read of them later: a harmful one is not averaged away."""
    first = [*conversation(*contents), *TAIL]
    going_on = data.draw(st.lists(st.integers(1, 40), max_size=12))
    before, after = TEMPLATE.turns(first), TEMPLATE.turns([*first, *going_on])
    assert after[: len(before)] == before


@given(content=WORDS, data=st.data())
def test_content_is_neither_gained_nor_lost_by_what_the_client_cuts(content, data):
    """A tail cut anywhere, no generation prompt, or a prefill behind it: the user's words are read, and no frame is."""
    ids = [*PREFIX, *content, *TAIL]
    kept = data.draw(st.integers(len(PREFIX) + len(content), len(ids)))
    readout = Readout(kind="max", over="content")
    [turn] = TEMPLATE.turns(ids[:kept])
    assert [ids[place] for place in readout.positions(turn)] == content
    first, *rest = TEMPLATE.turns([*ids, *data.draw(WORDS)])
    assert [ids[place] for place in readout.positions(first)] == content
    assert all(turn.is_open for turn in rest)


@pytest.mark.parametrize(
    ("ids", "ending"),
    [
        ([*PREFIX, 20, *TAIL], Ending.TEMPLATE),
        ([*PREFIX, 20, *TAIL, 50, 51], Ending.TEMPLATE),
        ([*PREFIX, 20, *TAIL, 50], Ending.PREFILL),
        ([*PREFIX, 20, *TAIL, 30, 31, 32], Ending.PREFILL),
        ([*PREFIX, 20, *TAIL, 30, *NEXT, 21], Ending.OPEN),
        ([*PREFIX, 20, *TAIL, 30, END], Ending.OPEN),
        ([*PREFIX, 20, *TAIL[:3]], Ending.OPEN),
        ([*PREFIX, 20, END, LINE], Ending.OPEN),
        ([*PREFIX, 20], Ending.OPEN),
        ([20, 21, 22], Ending.OPEN),
        ([*PREFIX, 20, *TAIL, LINE], Ending.PREFILL),
        ([*PREFIX, 20, *TAIL, SYSTEM], Ending.OPEN),
        ([20], Ending.OPEN),
        ([*TAIL], Ending.TEMPLATE),
    ],
)
def test_how_a_prompt_ends_is_read_off_its_token_ids(ids, ending):
    """As calibrated, behind an opened answer, or in any other way."""
    assert TEMPLATE.ending(ids) is ending
    assert TEMPLATE.turns(ids)[-1].is_open == (ending is not Ending.TEMPLATE)


def test_typed_role_markers_divide_turns_like_the_template_s_own():
    """A request that closes its own turn is a turn: what comes behind does not speak for it."""
    honest = [*PREFIX, 20, 21, *TAIL]
    forged = [*PREFIX, 20, 21, *TAIL, 30, *NEXT, 22, *TAIL]
    assert TEMPLATE.turns(forged)[0] == TEMPLATE.turns(honest)[0]
    assert len(TEMPLATE.turns(forged)) == 2


def test_thousands_of_turns_are_read_as_one_that_is_open():
    """Nobody makes the guard read turn by turn for seconds: more turns than any conversation has are off the
    template.
    """
    turns, ending = TEMPLATE.read([*PREFIX, *([20, *TAIL] * (MOST_TURNS + 1))])
    assert (len(turns), ending) == (1, Ending.OPEN)
    turns, ending = TEMPLATE.read([*PREFIX, *([20, *TAIL] * MOST_TURNS)])
    assert (len(turns), ending) == (MOST_TURNS, Ending.TEMPLATE)


def test_a_turn_that_says_nothing_has_a_place_to_read():
    """Only template tokens: the last of them is read, so that every turn has a score."""
    [turn] = TEMPLATE.turns([*PREFIX, *TAIL])
    assert list(Readout(kind="max", over="content").positions(turn)) == [6]


@given(content=WORDS)
def test_a_prompt_s_first_token_is_no_content(content):
    """Raw text: no mean drowns in the massive activations of the first token. One token alone is read."""
    [turn] = TEMPLATE.turns(content)
    read = list(Readout(kind="mean", over="content").positions(turn))
    assert read == list(Readout(kind="mean", over="content").positions(whole(len(content))))
    assert read == (list(range(1, len(content))) or [0])


@given(ids=st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_any_token_ids_are_divided_without_gap_or_overlap(ids):
    """Whatever a client sends: the turns are the prompt, in order, and frames lie within their turns."""
    turns, ending = TEMPLATE.read(ids)
    assert turns[0].start == 0
    assert turns[-1].stop == len(ids) or ending is Ending.TEMPLATE
    assert all(before.stop == after.start for before, after in pairwise(turns))
    assert all(turn.start <= place < turn.stop for turn in turns for place in turn.frame)
    assert all(turn.num_tokens > 0 for turn in turns)
    assert not any(turn.is_open for turn in turns[:-1])
    assert isinstance(turns[0], Turn)
