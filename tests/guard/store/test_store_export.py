"""What is exported is what is stored, whole or not at all."""

import json
import math
import sys

import pyarrow.parquet as pq
import pytest

from guard.store.batch import Batches
from guard.store.errors import StoreError
from guard.store.export import export_jsonl, export_parquet
from guard.store.filters import Filters
from guard.store.label import GivenLabel, Label, Labels
from guard.verdict import Action
from tests.guard.store.traffic import kept


@pytest.fixture
def made(engine):
    """More than one page of decisions; one has a label, one no score, and one a score that is no number."""
    batch = [kept(number, tenant=f"t{number % 2}") for number in range(5998)]
    batch += [kept(5998, scores={}), kept(5999, scores={"harm": math.nan}, action=Action.BLOCK)]
    Batches(engine).write(batch)
    Labels(engine).give([GivenLabel("fge_1", Label.HARMFUL, "ada", "csv")])
    return batch


def test_json_lines_hold_every_decision_the_oldest_first(engine, made, tmp_path):
    """With scores by probe and the label that counts; what is no number is null."""
    assert export_jsonl(engine, tmp_path / "d.jsonl") == 6000
    rows = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [row["event_id"] for row in rows] == [each.event_id for each in made]
    first, second = rows[:2]
    assert (first["at"], first["scores"], first["label"]) == ("2026-11-01T12:00:00+00:00", {"harm": 0.0}, None)
    assert (second["label"], second["label_by"], second["label_source"]) == ("harmful", "ada", "csv")
    assert (rows[-1]["scores"], rows[-1]["action"]) == ({"harm": None}, "block")


def test_parquet_holds_the_same(engine, made, tmp_path):
    """In columns of their own kinds."""
    assert export_parquet(engine, tmp_path / "d.parquet") == 6000
    table = pq.read_table(tmp_path / "d.parquet")
    rows = table.to_pylist()
    assert [row["event_id"] for row in rows] == [each.event_id for each in made]
    assert [dict(row["scores"]) for row in rows[:2]] == [{"harm": 0.0}, {"harm": 1.0}]
    assert [row["at"] for row in rows[:2]] == [each.at for each in made[:2]]
    assert (rows[1]["label"], rows[-1]["action"], rows[-2]["scores"]) == ("harmful", "block", [])
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"


def test_filters_hold_for_exports_and_an_empty_one_is_a_file(engine, made, tmp_path):
    """A tenant who asks for their own."""
    assert export_jsonl(engine, tmp_path / "d.jsonl", Filters(tenant="t0")) == 2999
    assert export_jsonl(engine, tmp_path / "none.jsonl", Filters(tenant="nobody")) == 0
    assert export_parquet(engine, tmp_path / "none.parquet", Filters(tenant="nobody")) == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


@pytest.mark.parametrize("export", [export_jsonl, export_parquet])
def test_a_file_that_cannot_be_written_is_a_clear_error(engine, made, tmp_path, export):
    """And leaves nothing behind, nor touches what was there."""
    (tmp_path / "there").write_text("before")
    with pytest.raises(StoreError, match="cannot be written"):
        export(engine, tmp_path / "there" / "d")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        export(engine, tmp_path / "folder")
    assert {each.name for each in tmp_path.iterdir()} - {"store"} == {"there", "folder"}
    assert (tmp_path / "there").read_text() == "before"


def test_without_pyarrow_the_error_says_what_to_install(engine, tmp_path, monkeypatch):
    """Parquet is an extra; JSONL needs nothing."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match="pyarrow") as refused:
        export_parquet(engine, tmp_path / "d.parquet")
    assert "foreguard[store]" in refused.value.remedy
    assert export_jsonl(engine, tmp_path / "d.jsonl") == 0
