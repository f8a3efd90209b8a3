"""What is read is what was asked for: by page, by filter, by probe, by minute."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from guard.store.batch import Batches
from guard.store.counting import Count, counts
from guard.store.errors import StoreError
from guard.store.filters import NONE, Filters
from guard.store.reader import Reader
from guard.store.scores import event_ids, probes, scores
from guard.verdict import Action, Unscored
from tests.guard.store.traffic import START, kept

TENANTS = ("acme", "globex", None)


def traffic(number=60):
    """One decision a second: tenants in turn, every fifth one blocked, every tenth one without scores."""
    return [
        kept(
            each,
            tenant=TENANTS[each % 3],
            action=Action.BLOCK if each % 5 == 0 else Action.ALLOW,
            scores={} if each % 10 == 9 else {"harm": float(each), "refusal": -float(each)},
            unscored=Unscored.MISSING if each % 10 == 9 else None,
            seconds=float(each),
        )
        for each in range(number)
    ]


@pytest.fixture
def made(engine):
    batch = traffic()
    # Not in order: several processes write.
    Batches(engine).write(batch[1::2])
    Batches(engine).write(batch[::2])
    return batch


def ids(records):
    return [record.decision.event_id for record in records]


def test_pages_hold_every_decision_once_the_newest_first(engine, made):
    """Also while new ones come in between two pages."""
    reader, found, before = Reader(engine), [], None
    while page := reader.recent(7, before=before):
        found += ids(page)
        before = page[-1].key
        Batches(engine).write([kept(1000 + len(found))])
    assert found == [each.event_id for each in made[::-1]]
    assert [len(page) for page in reader.pages(Filters(until=START + timedelta(hours=0.1)), size=25)] == [25, 25, 10]


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        (Filters(tenant="acme"), lambda each: each.tenant == "acme"),
        (Filters(tenant=NONE), lambda each: each.tenant is None),
        (Filters(tenant=("acme", NONE)), lambda each: each.tenant in ("acme", None)),
        (Filters(tenant="nobody"), lambda _each: False),
        (Filters(tenant="acme", action="block"), lambda each: each.tenant == "acme" and each.action == "block"),
        (Filters(unscored="missing"), lambda each: each.unscored == "missing"),
        (
            Filters(since=START + timedelta(seconds=10), until=START + timedelta(seconds=20)),
            lambda each: timedelta(seconds=10) <= each.at - START < timedelta(seconds=20),
        ),
    ],
)
def test_filters_leave_what_fits_all_of_them(engine, made, filters, fits):
    """The same decisions as a loop over all of them finds, in records and in scores."""
    expected = [each for each in made[::-1] if fits(each)]
    assert ids(Reader(engine).recent(1000, filters)) == [each.event_id for each in expected]
    found = scores(engine, "harm", 1000, filters)
    assert event_ids(engine, found) == [each.event_id for each in expected if each.scores]


def test_scores_are_those_of_the_last_decisions_that_have_one(engine, made):
    """Newest first, with their times and events, whatever other probes a decision has."""
    extra = [kept(100 + each, scores={"aaa": 0.0, "harm": 100.0 + each, "zzz": 9.0}) for each in range(5)]
    Batches(engine).write([*extra, kept(200, scores={"aaa": 1.0})])
    expected = [each for each in (*extra[::-1], *made[::-1]) if "harm" in each.scores]
    for n in (0, 1, 7, 1000):
        found = scores(engine, "harm", n)
        assert found.scores.tolist() == [each.scores["harm"] for each in expected[:n]]
        assert event_ids(engine, found) == [each.event_id for each in expected[:n]]
        assert found.times.tolist() == [each.at.replace(tzinfo=None) for each in expected[:n]]
    assert probes(engine) == ["aaa", "harm", "refusal", "zzz"]
    assert len(scores(engine, "nothing", 10).keys) == 0


def test_scores_are_exact_and_in_order_over_many_blocks(engine, monkeypatch):
    """Doubles to the last bit, where the database is asked more than once."""
    monkeypatch.setattr("guard.store.scores._AT_ONCE", 64)
    values = np.random.default_rng(0).normal(size=300)
    values[7] = np.nan
    Batches(engine).write([kept(number, scores={"p": float(value)}) for number, value in enumerate(values)])
    found = scores(engine, "p", 1000)
    assert found.scores.tobytes() == values[::-1].tobytes()
    assert scores(engine, "p", 130).scores.tobytes() == values[::-1][:130].tobytes()


def test_counts_add_up_minute_by_minute(engine, made):
    """By action and tenant, with what clients waited."""
    Batches(engine).write([replace(kept(61), seconds=4.0), replace(kept(62), seconds=8.0)])
    found = counts(engine, by=("action", "tenant"))
    assert sum(each.decisions for each in found) == 62
    assert found[-1] == Count(START + timedelta(minutes=1), ("allow", None), 2, 6.0, 8.0)
    of_acme = [each for each in found if each.words == ("block", "acme")]
    waited = [each.seconds for each in made if each.tenant == "acme" and each.action == "block"]
    assert of_acme == [Count(START, ("block", "acme"), len(waited), sum(waited) / len(waited), max(waited))]
    (whole,) = counts(engine, Filters(tenant="acme"), by=(), every=timedelta(hours=1))
    assert (whole.words, whole.decisions) == ((), 20)


@pytest.mark.parametrize("asked", [{"by": ("request_id",)}, {"every": timedelta(0)}])
def test_what_cannot_be_counted_is_a_clear_error(engine, asked):
    """A column that is no word, a time without length."""
    with pytest.raises(StoreError):
        counts(engine, **asked)


def test_decisions_that_went_meanwhile_are_left_out(engine, made):
    """The console may hold keys of what retention has deleted."""
    found = Reader(engine).recent(3)
    keys = [found[2].key, 12345, found[0].key]
    assert ids(Reader(engine).at(keys)) == [found[2].decision.event_id, found[0].decision.event_id]
