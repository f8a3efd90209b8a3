"""The sink keeps every decision where the database is there, and holds nobody up where it is not."""

import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from guard.journal import Journal
from guard.store.cipher import Cipher, new_key
from guard.store.reader import Reader
from guard.store.sink import LONGEST_TEXT, StoreSink
from guard.store.stored import stored
from guard.store.text_vault import TextVault, count_texts
from tests.guard.store.traffic import decision, wait_until

AT_ONCE_S = 0.5
"""For a thousand calls: ten times what they take on a machine that is busy, and a tenth of any database's time-out."""


@pytest.fixture
def sink(opened):
    """A maker of sinks, which are closed at the end."""
    made = []

    def make(url, **settings):
        made.append(StoreSink(opened(url), **settings))
        return made[-1]

    yield make
    for each in made:
        each.close(10)


def ids(url, opened):
    return {record.decision.event_id for record in Reader(opened(url)).recent(100_000)}


def record_at_once(sink, number, first=0):
    """Record so many decisions, and hold the sink to its promise."""
    made = [decision(f"fge_{each}") for each in range(first, first + number)]
    journal, began = Journal(sink, on_drop=lambda: pytest.fail("the sink raised")), time.perf_counter()
    for each in made:
        journal.record(each)
    assert time.perf_counter() - began < AT_ONCE_S * number / 1000
    return {each.verdict.event_id for each in made}


def test_what_the_journal_records_is_in_the_store(url, opened, sink):
    """With the names of the server and of the model, and all of it once the sink is closed."""
    kept = sink(url, replica="pod-1", model="served")
    made = decision("fge_a", tenant="acme")
    Journal(kept).record(made)
    Journal(kept).give_up()
    kept.close(60)
    (found,) = Reader(opened(url)).recent(10)
    assert found.decision == stored(made, replica="pod-1", model="served")
    assert (found.decision.replica, found.decision.model, found.decision.tenant) == ("pod-1", "served", "acme")
    assert (kept.status().written, kept.status().queued, kept.status().dropped) == (1, 0, {})


def test_a_decision_is_there_without_anyone_closing(url, opened, sink):
    """The console of a running server sees it within moments."""
    kept = sink(url)
    expected = record_at_once(kept, 1000)
    wait_until(lambda: kept.status().written == 1000)
    assert ids(url, opened) == expected


WRITES = """
import sys
from guard.store.engine import open_store
from guard.store.sink import StoreSink
from tests.guard.store.traffic import decision
url, replica = sys.argv[1:]
sink = StoreSink(open_store(url), replica=replica)
for number in range(2000):
    sink.record(decision(f"fge_{replica}_{number}"))
sink.close(100)
assert sink.status().written == 2000, sink.status()
"""


def test_several_processes_write_at_once(url, opened):
    """Each API process has its own sink, and each replica its own server: all of them start on an empty store."""
    names = [f"pod-{number}" for number in range(3)]
    started = [subprocess.Popen([sys.executable, "-c", WRITES, url, name], cwd=Path.cwd()) for name in names]
    assert [each.wait(timeout=120) for each in started] == [0, 0, 0]
    assert ids(url, opened) == {f"fge_{name}_{number}" for name in names for number in range(2000)}


def test_a_locked_database_holds_nobody_up(sqlite_url, opened, sink, tmp_path):
    """What waits is written once the lock is gone, and what had no room is counted."""
    dropped, kept = [], None
    kept = sink(sqlite_url, capacity=300, on_drop=lambda reason, count: dropped.append((reason, count)))
    first = record_at_once(kept, 1)
    wait_until(lambda: kept.status().written == 1)
    other = sqlite3.connect(tmp_path / "store" / "decisions.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    record_at_once(kept, 1000, first=1)
    assert {reason for reason, _ in dropped} <= {"queue_full", "database"}
    other.execute("ROLLBACK")
    other.close()
    kept.close(60)
    lost = sum(kept.status().dropped.values())
    assert lost == sum(count for _, count in dropped) >= 1000 - 300 - 2 * 256
    found = ids(sqlite_url, opened)
    assert len(found) == 1001 - lost
    assert first < found


def test_a_database_that_comes_late_gets_what_waited(opened, sink, tmp_path):
    """The folder of a volume that is mounted later; the tables are made then."""
    (tmp_path / "volume").mkdir()
    address = f"sqlite:///{tmp_path / 'volume' / 'store.db'}"
    kept = sink(address)
    shutil.rmtree(tmp_path / "volume")
    (tmp_path / "volume").touch()
    expected = record_at_once(kept, 100)
    wait_until(lambda: kept.status().problem is not None)
    assert "volume" in kept.status().problem
    (tmp_path / "volume").unlink()
    wait_until(lambda: kept.status().problem is None)
    kept.close(60)
    assert ids(address, opened) == expected


def test_a_sqlite_file_that_was_deleted_is_made_anew(sqlite_url, opened, sink, tmp_path):
    """Its open file would be written to for ever, and be read by nobody."""
    kept = sink(sqlite_url)
    record_at_once(kept, 10)
    wait_until(lambda: kept.status().written == 10)
    shutil.rmtree(tmp_path / "store")
    expected = record_at_once(kept, 10, first=10)
    kept.close(60)
    assert ids(sqlite_url, opened) == expected


def test_a_store_of_a_newer_foreguard_is_not_written(fresh, url, sink):
    """The verdicts go on. The status says what is wrong."""
    with fresh.begin() as connection:
        connection.execute(text("UPDATE foreguard_store_version SET version_num = '9999'"))
    kept = sink(url)
    record_at_once(kept, 5)
    wait_until(lambda: kept.status().problem is not None)
    assert "9999" in kept.status().problem
    kept.close(60)
    assert kept.status().dropped == {"database": 5}


def test_no_password_is_logged(opened, tmp_path, caplog):
    """The operator reads once that the database is gone, and the password stays where it is."""
    kept = StoreSink(opened(f"postgresql://owner:s3cret@/d?host={tmp_path}&password=s3cret"))
    record_at_once(kept, 5)
    wait_until(lambda: kept.status().problem is not None)
    kept.close(60)
    (line,) = [record.getMessage() for record in caplog.records if "decision store" in record.getMessage()]
    assert str(tmp_path) in line
    assert "s3cret" not in line + kept.status().problem
    assert kept.status().dropped == {"database": 5}


def test_a_row_that_no_database_takes_is_counted(sqlite_url, opened, sink):
    """The others of its batch are kept."""
    kept = sink(sqlite_url)
    kept.record(decision("fge_bad", prompt_tokens=2**70))
    kept.record("no decision at all")
    kept.record(decision("fge_good"))
    kept.close(60)
    assert kept.status().dropped == {"invalid": 2}
    assert ids(sqlite_url, opened) == {"fge_good"}


def test_a_counter_that_fails_stops_nothing(sqlite_url, opened, sink):
    """Metrics may stand on the disk that is full."""
    kept = sink(sqlite_url, capacity=0, on_drop=lambda _reason, _count: 1 / 0)
    kept.record(decision("fge_a"))
    assert kept.status().dropped == {"queue_full": 1}


def test_after_the_end_decisions_are_dropped_and_counted(sqlite_url, opened, sink):
    """A request that ends while the server does."""
    kept = sink(sqlite_url)
    kept.close(60)
    kept.record(decision("fge_a"))
    assert kept.status().dropped == {"closed": 1}


def test_closing_waits_no_longer_than_it_is_told(sqlite_url, opened, sink, tmp_path):
    """A server that must stop does, whatever its database does."""
    kept = sink(sqlite_url)
    record_at_once(kept, 1)
    wait_until(lambda: kept.status().written == 1)
    other = sqlite3.connect(tmp_path / "store" / "decisions.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    record_at_once(kept, 1000, first=1)
    began = time.monotonic()
    kept.close(0.3)
    assert time.monotonic() - began < 3
    assert kept.status().dropped["closed"] >= 1000 - 2 * 256
    other.close()


FORKS = """
import os, sys
from guard.store.engine import open_store
from guard.store.sink import StoreSink
from tests.guard.store.traffic import decision
sink = StoreSink(open_store(sys.argv[1]))
sink.record(decision("fge_parent"))
child = os.fork()
if not child:
    sink.record(decision("fge_child"))
sink.close(60)
assert sink.status().written == 1, sink.status()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_writes_its_own(url, opened):
    """The child has no thread of the parent's: it starts one, and writes nothing that is the parent's to write."""
    subprocess.run([sys.executable, "-c", FORKS, url], check=True, timeout=120, cwd=Path.cwd())
    assert ids(url, opened) == {"fge_parent", "fge_child"}


def test_texts_are_kept_only_where_the_operator_wants_them(url, opened, sink):
    """Without a key none is; with one they are sealed, and the end of a long one is kept."""
    plain, cipher = sink(url), Cipher(new_key())
    plain.record_text("fge_a", "a prompt")
    plain.record(decision("fge_a"))
    plain.close(60)
    assert count_texts(opened(url)) == 0
    sealing = sink(url, cipher=cipher)
    sealing.record_text("fge_b", "a prompt\0\ud800")
    sealing.record_text("fge_c", "x" * LONGEST_TEXT + "the end")
    sealing.close(60)
    vault = TextVault(opened(url), cipher)
    assert [vault.text(f"fge_{each}") for each in "ab"] == [None, "a prompt\0?"]
    assert vault.text("fge_c").endswith("xxthe end")
    assert len(vault.text("fge_c")) == LONGEST_TEXT
