"""Labels: the last one counts, none is ever lost, and they say what to look at next."""

from datetime import timedelta

import pytest

from guard.store.batch import Batches
from guard.store.filters import Filters
from guard.store.label import GivenLabel, Label, Labels
from guard.store.reader import Reader
from guard.store.review import borderline, labelled
from tests.guard.store.traffic import START, kept


@pytest.fixture
def store(engine):
    """A hundred decisions whose scores are their numbers."""
    Batches(engine).write([kept(number) for number in range(100)])
    return engine


def given(number, label, who="ada", **about):
    return GivenLabel(f"fge_{number}", label, who, "review", **about)


def test_the_last_label_counts_and_all_are_there(store):
    """Undo is another row: what was said stays said."""
    labels = Labels(store)
    rows = [
        given(1, Label.HARMFUL, chance=0.25, at=START),
        given(1, Label.UNSURE, "bob", at=START - timedelta(days=1)),
        given(1, Label.BENIGN, at=START),
    ]
    for row in rows:
        assert labels.give([row]) == 1
    assert labels.history("fge_1") == rows
    assert labels.current(["fge_1", "fge_2"]) == {"fge_1": rows[-1]}
    labels.give([given(1, Label.WITHDRAWN)])
    assert labels.current(["fge_1"]) == {}
    assert len(labels.history("fge_1")) == 4
    assert Reader(store).decision("fge_1").label is None


def test_records_have_their_labels(store):
    """Whoever lists decisions sees what was said of them."""
    label = given(99, Label.HARMFUL)
    Labels(store).give([label])
    first, second = Reader(store).recent(2)
    assert (first.label, second.label) == (label, None)


def test_many_labels_come_from_a_file(store):
    """Thousands at once, for decisions that the store has and others; which it lacks can be asked."""
    rows = [given(number, Label.BENIGN) for number in range(3000)]
    labels = Labels(store)
    assert labels.give(rows) == 3000
    assert len(labels.current([row.event_id for row in rows])) == 3000
    assert labels.unknown([row.event_id for row in rows]) == {f"fge_{number}" for number in range(100, 3000)}


def test_the_borderline_comes_first_and_what_has_a_label_not_again(store):
    """Nearest to the threshold first. A label that is taken back brings a decision back."""

    def queue(n=3, **about):
        return [record.decision.event_id for record in borderline(store, "harm", 50.1, n, **about)]

    assert queue() == ["fge_50", "fge_51", "fge_49"]
    Labels(store).give([given(50, Label.BENIGN), given(51, Label.UNSURE)])
    assert queue() == ["fge_49", "fge_52", "fge_48"]
    Labels(store).give([given(50, Label.WITHDRAWN)])
    assert queue(1) == ["fge_50"]
    assert queue(1, among=20) == ["fge_80"]
    assert queue(1, filters=Filters(until=START + timedelta(seconds=40))) == ["fge_39"]


def test_what_precision_and_recall_are_counted_from(store):
    """Each decision that has a label, with its scores, the newest first, and the chance that it was picked with."""
    Labels(store).give([given(3, Label.HARMFUL, chance=0.5), given(8, Label.BENIGN), given(1000, Label.BENIGN)])
    found = labelled(store)
    assert [(each.decision.scores["harm"], each.label.label, each.label.chance) for each in found] == [
        (8.0, "benign", None),
        (3.0, "harmful", 0.5),
    ]
    assert len(labelled(store, n=1)) == 1
    assert labelled(store, filters=Filters(tenant="acme")) == []
