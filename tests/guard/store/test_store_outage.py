"""Whatever happens to the database, verdicts wait for nothing, whole rows are there afterwards, and writing goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import event, text

from guard.store.migration import upgrade
from guard.store.reader import Reader
from guard.store.sink import StoreSink
from tests.guard.store.postgres import Postgres, find_postgres
from tests.guard.store.traffic import decision, wait_until

WRITES = """
import sys
from guard.store.engine import open_store
from guard.store.sink import StoreSink
from tests.guard.store.traffic import decision
sink = StoreSink(open_store(sys.argv[1]))
number = 0
while True:
    if sink.status().queued < 5000:
        sink.record(decision(f"fge_{number}", scores={"harm": float(number), "refusal": -float(number)}))
        number += 1
    if number % 1000 == 0:
        print(sink.status().written, flush=True)
"""


def test_kill_9_leaves_whole_rows(url, opened):
    """Three processes in turn are killed while they write: each row that is there is whole, in its order, and more are
    written.
    """
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITES, url], stdout=subprocess.PIPE, cwd=Path.cwd())
        while not int(writer.stdout.readline()):
            pass
        writer.kill()
        writer.communicate(timeout=60)
    engine = opened(url)
    upgrade(engine)
    records = Reader(engine).recent(1_000_000)
    assert records
    for record in records:
        number = float(record.decision.event_id.removeprefix("fge_"))
        assert record.decision.scores == {"harm": number, "refusal": -number}
    # Batches are written in order, and whole: nothing is missing before what is there.
    assert sorted(int(each.decision.scores["harm"]) for each in records) == list(range(len(records)))
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
    sink = StoreSink(engine)
    sink.record(decision("fge_after"))
    sink.close(60)
    assert sink.status().written == 1


def test_a_full_disk_drops_and_counts_and_is_got_over(sqlite_url, opened):
    """SQLite may have no further page. Once it may, what waited is written, and so is what comes."""
    engine, limit = opened(sqlite_url), [1_000_000]
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={limit[0]}"))
    sink = StoreSink(engine, capacity=500)
    sink.record(decision("fge_0"))
    wait_until(lambda: sink.status().written == 1)
    limit[0] = 1
    recorded = 1
    while not sink.status().dropped:
        sink.record(decision(f"fge_{recorded}"))
        recorded += 1
        time.sleep(0.0005)
    assert "full" in sink.status().problem
    assert sink.status().dropped.keys() == {"database"}
    before = len(Reader(engine).recent(1_000_000))
    limit[0] = 1_000_000
    wait_until(lambda: sink.status().problem is None)
    sink.close(60)
    lost = sum(sink.status().dropped.values())
    assert before < len(Reader(engine).recent(1_000_000)) == recorded - lost


@pytest.fixture
def own_server():
    """A PostgreSQL server that a test may stop."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = Postgres(programs)
    yield server
    server.close()


def record_at_once(sink, first):
    began = time.perf_counter()
    for number in range(first, first + 100):
        sink.record(decision(f"fge_{number}"))
    assert time.perf_counter() - began < 0.5


def test_a_postgresql_that_stops_and_freezes_is_written_again(own_server, opened):
    """It is stopped in the middle, started again, and then answers nothing for a while: every decision is there in the
    end, once.
    """
    engine = opened(own_server.new_store())
    sink = StoreSink(engine)
    record_at_once(sink, 0)
    wait_until(lambda: sink.status().written == 100)
    own_server.stop("immediate")
    record_at_once(sink, 100)
    wait_until(lambda: sink.status().problem is not None)
    own_server.start()
    wait_until(lambda: sink.status().written == 200, seconds=60)
    assert sink.status().problem is None
    frozen = [own_server.pid(), *_children(own_server.pid())]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    record_at_once(sink, 200)
    time.sleep(0.5)
    record_at_once(sink, 300)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: sink.status().written == 400)
    sink.close(60)
    assert sink.status().dropped == {}
    assert len(Reader(engine).recent(1000)) == 400


def _children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
