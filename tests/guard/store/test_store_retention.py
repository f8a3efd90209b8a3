"""What is too old or too much goes, while decisions keep coming, and nothing else goes."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from guard.store.batch import Batches, KeptText
from guard.store.cipher import Cipher, new_key
from guard.store.errors import StoreError
from guard.store.label import GivenLabel, Label, Labels
from guard.store.pruner import Pruner
from guard.store.reader import Reader
from guard.store.retention import Deleted, Retention, prune
from guard.store.sink import StoreSink
from guard.store.text_vault import TextVault, count_texts
from tests.guard.store.traffic import decision, kept, wait_until

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def aged(number):
    """A decision of so many hours ago."""
    return replace(kept(number), at=NOW - number * HOUR)


def ids(engine):
    return [int(record.decision.event_id[4:]) for record in Reader(engine).recent(100_000)]


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(age=timedelta(hours=20.5), decisions=None), 21),
        (Retention(age=None, decisions=30), 30),
        (Retention(age=timedelta(hours=20.5), decisions=30), 21),
        (Retention(age=timedelta(hours=20.5), decisions=10), 10),
        (Retention(age=None, decisions=None), 100),
        (Retention(), 100),
    ],
)
def test_the_newest_are_kept(engine, retention, left):
    """By age, by number, by both; a second time nothing is left to do."""
    Batches(engine).write([aged(number) for number in range(100)])
    assert prune(engine, retention, batch=7) == Deleted(100 - left, 0)
    assert ids(engine) == list(range(left))
    assert prune(engine, retention) == Deleted(0, 0)


def test_texts_go_sooner_and_labels_stay(engine):
    """No text outlives its decision."""
    cipher = Cipher(new_key())
    texts = [KeptText(f"fge_{number}", "a prompt", NOW - number * HOUR) for number in range(10)]
    Batches(engine, cipher).write([aged(number) for number in range(10)], texts)
    Labels(engine).give([GivenLabel("fge_9", Label.BENIGN, "ada", "review")])
    assert prune(engine, Retention(age=None, decisions=None, text_age=timedelta(hours=6.5))) == Deleted(0, 3)
    assert prune(engine, Retention(age=None, decisions=4, text_age=None)) == Deleted(6, 3)
    assert TextVault(engine, cipher).text("fge_3") == "a prompt"
    assert count_texts(engine) == 4
    assert len(Labels(engine).history("fge_9")) == 1


def test_two_at_once_delete_no_more_than_one(engine):
    """Each API process of two replicas may prune."""
    Batches(engine).write([aged(number) for number in range(400)])
    both = range(2)
    started = [
        threading.Thread(target=prune, args=(engine, Retention(decisions=100)), kwargs={"batch": 10}) for _ in both
    ]
    for each in started:
        each.start()
    for each in started:
        each.join(60)
    prune(engine, Retention(decisions=100))
    assert ids(engine) == list(range(100))


def test_the_number_holds_while_rows_keep_coming(url, opened):
    """Ten times as many as are kept are written meanwhile, and none is dropped."""
    engine = opened(url)
    sink = StoreSink(engine)
    sink.record(decision("fge_0"))
    wait_until(lambda: sink.status().written == 1)
    pruner = Pruner(engine, Retention(decisions=300), interval=0.05)
    pruner.start()
    most = 0
    for number in range(1, 3000):
        sink.record(decision(f"fge_{number}"))
        if number % 300 == 0:
            wait_until(lambda number=number: sink.status().written > number)
            most = max(most, len(ids(engine)))
    sink.close(60)
    wait_until(lambda: len(ids(engine)) == 300)
    pruner.close()
    assert sink.status().dropped == {}
    assert most < 2000
    assert sorted(ids(engine)) == list(range(2700, 3000))


def test_a_pruner_outlives_its_database(opened):
    """It asks again, and ends when it is told to."""
    pruner = Pruner(opened("postgresql:///nothing?host=/nowhere"), Retention(), interval=0.01)
    pruner.start()
    time.sleep(0.1)
    assert pruner.is_alive()
    pruner.close(60)
    assert not pruner.is_alive()


@pytest.mark.parametrize("settings", [{"age": timedelta(0)}, {"decisions": 0}, {"text_age": -HOUR}])
def test_a_retention_that_keeps_nothing_is_refused(settings):
    """It is a slip, and not a wish."""
    with pytest.raises(StoreError, match="nothing would be kept"):
        Retention(**settings)
