"""The benchmark says what its pairs show, and a run that is cut off loses nothing."""

import json

import numpy as np
import pytest

from benchmarks import report
from benchmarks.paired import ratio, spread
from benchmarks.records import Records, code_digest
from benchmarks.results import results

ABOUT = {"machine": "a machine", "code": "abc"}


def planted(factor: float, slow: float) -> dict[str, dict[str, float]]:
    """Return a latency pair taken while the machine was `slow`, whose guarded arm takes `factor` times as long."""
    times = {"unguarded": slow, "guarded": slow * factor, "judged": slow * 2}
    return {arm: {"first_token": t, "per_token": t / 10, "total": 2 * t} for arm, t in times.items()}


@pytest.fixture
def records(tmp_path) -> Records:
    records = Records(tmp_path / "pairs.jsonl", ABOUT)
    for slow in (1.0, 4.0, 0.5, 2.0, 8.0):
        records.add("lab.latency", planted(1.25, slow))
    return records


def test_a_planted_ratio_is_found_however_the_machine_drifts(records):
    first_token = results(records)["lab"]["latency"]["first_token"]
    assert first_token["ratio"]["guarded"] == {"median": 1.25, "low": 1.25, "high": 1.25, "pairs": 5}
    assert first_token["ratio"]["judged"]["median"] == 2.0
    assert first_token["quantiles"]["unguarded"] == {"p50": 2.0, "p99": pytest.approx(7.84), "samples": 5}


def test_added_microseconds_are_per_step_of_decode_and_per_batch_of_prefill(tmp_path):
    records = Records(tmp_path / "pairs.jsonl", ABOUT)
    for slow in (1.0, 2.0, 3.0):
        plain = {"prefill": [slow, slow], "decode": [slow, slow, slow]}
        guarded = {"prefill": [slow + 3e-5, slow + 4e-5], "decode": [slow + 1e-5, slow + 1e-5, slow + 5e-5]}
        records.add("lab.steps", {"guarded": guarded, "unguarded": plain})
    steps = results(records)["lab"]["steps"]
    assert steps["prefill"]["added_us"]["median"] == pytest.approx(70)
    assert steps["decode"]["added_us"]["median"] == pytest.approx(10)


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    """95 % of intervals hold the true median, within what 300 draws allow: 3 standard errors are 3.8 points."""
    chance = np.random.default_rng(1)
    found = [ratio(chance.lognormal(0.1, 0.2, 40), np.ones(40)) for _ in range(300)]
    covered = np.mean([each.low <= np.exp(0.1) <= each.high for each in found])
    assert covered >= 0.95 - 0.038


def test_same_pairs_same_interval():
    values = np.random.default_rng(2).normal(size=20)
    assert spread(values) == spread(values)


def test_a_run_that_is_cut_off_goes_on_where_it_stopped(tmp_path, records):
    again = Records(tmp_path / "pairs.jsonl", ABOUT)
    assert again.set_aside is None
    assert again.pairs("lab.latency") == records.pairs("lab.latency")


def test_a_pair_that_was_cut_off_in_the_middle_of_its_line_is_taken_again(tmp_path, records):
    path = tmp_path / "pairs.jsonl"
    path.write_text(path.read_text() + '{"measure": "lab.latency", "ar')
    again = Records(path, ABOUT)
    assert len(again.pairs("lab.latency")) == 5
    again.add("lab.latency", planted(1.25, 1.0))
    assert len(Records(path, ABOUT).pairs("lab.latency")) == 6


@pytest.mark.parametrize("other", [{**ABOUT, "code": "abd"}, {**ABOUT, "machine": "another"}])
def test_pairs_of_other_code_or_of_another_machine_are_set_aside_not_mixed_in(tmp_path, records, other):
    again = Records(tmp_path / "pairs.jsonl", other)
    assert again.pairs("lab.latency") == []
    assert again.set_aside is not None
    assert len(again.set_aside.read_text().splitlines()) == 6
    assert again.set_aside.name == "pairs.abc.jsonl"


def test_the_code_digest_changes_with_the_code_only(tmp_path):
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "a.py").write_text("one")
    before = code_digest(tmp_path, ["guard"])
    (tmp_path / "guard" / "notes.md").write_text("words")
    assert code_digest(tmp_path, ["guard"]) == before
    (tmp_path / "guard" / "a.py").write_text("two")
    assert code_digest(tmp_path, ["guard"]) != before


def test_the_document_gets_the_table_between_its_markers_and_keeps_the_rest(tmp_path, records):
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(results(records), document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| lab model, time to first token, guarded | 1.250 | 1.250 to 1.250 | 5 |" in text
    report.write(json.loads(json.dumps(results(records))), document)
    assert document.read_text() == text


def test_a_document_without_markers_is_left_alone(tmp_path, records):
    document = tmp_path / "notes.md"
    document.write_text("mine")
    with pytest.raises(ValueError, match="markers"):
        report.write(results(records), document)
    assert document.read_text() == "mine"
