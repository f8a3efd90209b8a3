"""`foreguard store` on a real SQLite file: made, looked at, labelled, exported, pruned."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from guard.store.batch import Batches
from guard.store.cipher import Cipher
from guard.store.engine import open_store
from guard.store.label import Label, Labels
from guard.store.reader import Reader
from guard.store.stored import StoredDecision
from guard.store_cli import app
from guard.verdict import Action, Mode
from probes.errors import ForeguardError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of ten decisions, one of them a year old, made by the command itself."""
    url = f"sqlite:///{tmp_path}/decisions.db"
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FOREGUARD_STORE", url)
    assert run("upgrade") == "the store's tables are up to date\n"
    engine = open_store(url)
    now = datetime.now(UTC)
    ages = [timedelta(days=365), *(timedelta(minutes=number) for number in range(9))]
    Batches(engine).write([_decision(number, now - age) for number, age in enumerate(ages)])
    yield engine
    engine.dispose()


def _decision(number, at):
    return StoredDecision(
        f"fge_{number}", Action.FLAG, Action.FLAG, scores={"harm": 1.0}, policy="p@1", mode=Mode.ENFORCE, at=at
    )


def run(*arguments):
    """Run the command; return what it printed. Raises what it raises."""
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_key_is_one_that_the_server_takes():
    """New each time."""
    keys = {run("key").strip() for _ in range(2)}
    assert len(keys) == 2
    for key in keys:
        cipher = Cipher(key)
        assert cipher.unseal(cipher.seal("text", "fge_1"), "fge_1") == "text"


def test_the_status_counts(store):
    """Decisions and labels."""
    assert "10" in run("status")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_export_has_every_decision(store, tmp_path, suffix):
    """In either format."""
    file = tmp_path / f"out{suffix}"
    run("export", str(file))
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert {row["event_id"] for row in rows} == {f"fge_{number}" for number in range(10)}
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        assert parquet.read_table(file).num_rows == 10


def test_labels_come_from_a_file(store, tmp_path):
    """With a byte-order mark and CRLF, as spreadsheets write it; ids that no decision has are told."""
    file = tmp_path / "labels.csv"
    file.write_bytes(
        b"\xef\xbb\xbfevent_id,label,who\r\nfge_1,harmful,grace\r\nfge_2,benign,grace\r\nfge_x,benign,\r\n"
    )
    printed = run("label", str(file))
    assert "fge_x" in printed
    current = Labels(store).current(["fge_1", "fge_2"])
    assert (current["fge_1"].label, current["fge_1"].who) == (Label.HARMFUL, "grace")


@pytest.mark.parametrize("line", ["fge_2,nasty", ",benign", "fge_2"])
def test_one_wrong_line_gives_no_label(store, tmp_path, line):
    """All of them or none, and the line is named."""
    file = tmp_path / "labels.csv"
    file.write_text(f"event_id,label\nfge_1,harmful\n{line}\n")
    with pytest.raises(ForeguardError, match="3"):
        run("label", str(file))
    assert Labels(store).current(["fge_1"]) == {}


def test_what_is_too_old_is_pruned(store):
    """And nothing else."""
    run("prune", "--days", "30")
    assert Reader(store).decision("fge_0") is None
    assert len(Reader(store).recent(20)) == 9


def test_a_store_without_tables_says_what_to_do(tmp_path, monkeypatch):
    """No traceback."""
    monkeypatch.setenv("FOREGUARD_STORE", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(ForeguardError, match="upgrade"):
        run("status")
