"""The benchmark says what its pairs show, and a run that is cut off loses nothing."""

import json

import numpy as np
import pytest

from benchmarks.cost import report
from benchmarks.cost.goals import GOALS, goal_of
from benchmarks.cost.points import points
from benchmarks.cost.results import FLAT, measure, results
from benchmarks.paired import ratio, ratio_by_start, ratio_of_turns, spread
from benchmarks.records import Records, code_digest

ABOUT = {"machine": "a machine", "code": "abc"}
LATENCY = measure("lab", "http", "1 at once")


def planted(factor: float, slow: float) -> dict[str, dict[str, float]]:
    """Return a pair taken through servers while the machine was `slow`, whose guarded arm takes `factor` times as
    long.
    """
    times = {"unguarded": slow, "control": slow, "guarded": slow * factor, "judge": slow * 2}
    return {arm: {"first_token": t, "per_token": t / 10, "requests_per_s": 1 / t} for arm, t in times.items()}


def steps(prefill: list[float], decode: list[float]) -> dict[str, list[float]]:
    return {"prefill": prefill, "decode": decode, "actions": {}}


@pytest.fixture
def records(tmp_path) -> Records:
    records = Records(tmp_path / "pairs.jsonl", ABOUT)
    for slow in (1.0, 4.0, 0.5, 2.0, 8.0):
        records.add(LATENCY, planted(1.25, slow))
    return records


def found(records: Records, part: str, level: str) -> dict:
    return results(records)["subjects"]["lab"][part][level]


def test_a_planted_ratio_is_found_however_the_machine_drifts(records):
    first_token = found(records, "http", "1 at once")["figures"]["first_token"]
    assert first_token["ratio"]["guarded"] == {"median": 1.25, "low": 1.25, "high": 1.25, "pairs": 5}
    assert first_token["ratio"]["judge"]["median"] == 2.0
    assert "unguarded" not in first_token["ratio"]
    assert first_token["quantiles"]["unguarded"] == {"p50": 2.0, "p99": pytest.approx(7.84)}


def test_engine_time_is_that_of_all_steps_and_a_decode_step_is_the_median_one(records):
    """One slow decode step in five belongs to the machine; the prefill's steps belong together, however many they
    are.
    """
    plain = steps([0.4, 0.4], [0.1] * 5)
    guarded = steps([0.4, 0.4, 0.08], [0.11] * 4 + [0.9])
    for _ in range(3):
        records.add(measure("lab", "steered", "50 %"), {"unguarded": plain, "control": plain, "guarded": guarded})
    level = found(records, "steered", "50 %")
    ratios = {figure: values["ratio"]["guarded"]["median"] for figure, values in level["figures"].items()}
    assert ratios == pytest.approx({"whole": 2.22 / 1.3, "prefill": 1.1, "step": 1.1})
    assert level["more_steps"] == {"unguarded": 0, "control": 0, "guarded": 1}


def test_blocked_requests_have_no_decode_steps_to_compare(records):
    pair = {"unguarded": steps([0.5], []), "guarded": steps([0.505], [])}
    records.add(measure("lab", "blocked", "100 %"), pair)
    assert set(found(records, "blocked", "100 %")["figures"]) == {"whole", "prefill"}


def test_a_judges_pass_comes_on_top_of_the_answer_that_it_lets_through(records):
    """Only the pass is measured as the judge's arm, and it has no decode steps: the answer is the unguarded one's."""
    pair = {"unguarded": steps([0.5], [0.1] * 5), "judge": steps([0.7], []), "small_judge": steps([0.1], [])}
    records.add(measure("lab", "alternatives", "base"), pair)
    figures = found(records, "alternatives", "base")["figures"]
    assert figures["whole"]["ratio"]["judge"]["median"] == pytest.approx(1.7)
    assert figures["prefill"]["ratio"]["small_judge"]["median"] == pytest.approx(1.2)
    assert figures["step"]["ratio"]["judge"]["median"] == 1.0


def test_the_cost_of_64_probes_is_also_compared_with_that_of_one(records):
    for slow in (1.0, 3.0):
        arms = {"unguarded": 1.0, "1 probe": 1.1, "64 probes": 1.21}
        pair = {arm: steps([slow * times], [slow * times / 10]) for arm, times in arms.items()}
        records.add(measure("lab", "probes", "base"), pair)
    ratios = found(records, "probes", "base")["figures"]["whole"]["ratio"]
    assert ratios[FLAT]["median"] == pytest.approx(1.1)
    assert ratios["64 probes"]["median"] == pytest.approx(1.21)


def test_every_goal_is_a_bound_on_something_that_is_measured():
    """A goal for a part or level that no longer exists would never be missed, and never be met."""
    for goal in GOALS:
        levels = {point.level: point for point in points(goal.subject) if point.part == goal.part}
        assert goal.level == "*" or goal.level in levels
        arms = {arm for point in levels.values() for arm in point.arms} | {FLAT}
        assert goal.arm in arms
    assert goal_of("half_billion", "http", "8 at once", "first_token", "guarded").words == "at most 1.01"
    assert goal_of("half_billion", "http", "8 at once", "first_token", "control") is None


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    """95 % of intervals hold the true median, within what 300 draws allow: 3 standard errors are 3.8 points."""
    chance = np.random.default_rng(1)
    found = [ratio(chance.lognormal(0.1, 0.2, 40), np.ones(40)) for _ in range(300)]
    covered = np.mean([each.low <= np.exp(0.1) <= each.high for each in found])
    assert covered >= 0.95 - 0.038


def test_turns_are_compared_with_their_twins():
    """A machine that is slow for two turns is slow for both; medians of each side say 6 where each turn says 2."""
    plain, guarded = [1.0, 1.0, 5.0, 5.0, 1.0], [2.0, 2.0, 10.0, 10.0, 6.0]
    assert ratio_of_turns([guarded] * 3, [plain] * 3).median == 2.0
    assert ratio_of_turns([guarded, [3.0]], [plain, [1.5]]).median == 2.0


def test_the_turns_of_a_pair_share_its_luck():
    """Ten pairs of a hundred equal turns are ten values, not a thousand: their interval is as wide as theirs."""
    ratios = np.random.default_rng(3).lognormal(0, 0.2, 10)
    turns = ratio_of_turns([[value] * 100 for value in ratios], [[1.0] * 100] * 10)
    alone = ratio(ratios, np.ones(10))
    assert (turns.low, turns.high) == pytest.approx((alone.low, alone.high), rel=0.05)
    assert turns.pairs == 10


def test_an_interval_knows_that_the_pairs_of_one_start_share_its_luck():
    """Twelve starts of four pairs, whose luck is 5 % and whose pairs differ by 1 %: the median of all starts is in 95 %
    of the intervals, as far as 300 draws can tell (3.8 points), and a median over so few is biased little enough (2
    more). Pairs taken for strangers cover it in far fewer.
    """
    chance = np.random.default_rng(4)
    starts = np.repeat(np.arange(12), 4)

    def covers(spread) -> bool:
        return spread.low <= 1.0 <= spread.high

    by_start, by_pair = [], []
    for _ in range(300):
        ratios = np.exp(np.repeat(chance.normal(0, 0.05, 12), 4) + chance.normal(0, 0.01, 48))
        by_start.append(covers(ratio_by_start(ratios, np.ones(48), starts)))
        by_pair.append(covers(ratio(ratios, np.ones(48))))
    assert np.mean(by_start) >= 0.95 - 0.058
    assert np.mean(by_pair) < 0.8


def test_starts_of_different_numbers_of_pairs_count_by_their_pairs():
    found = ratio_by_start([2.0, 4.0, 6.0, 6.0, 6.0], [2.0] * 5, [7, 7, 9, 9, 9])
    assert (found.median, found.low, found.high, found.pairs) == (3.0, 1.5, 3.0, 5)


def test_a_run_that_goes_on_starts_anew(tmp_path):
    """And what was taken before starts were recorded belongs to one."""
    path = tmp_path / "pairs.jsonl"
    records = Records(path, ABOUT)
    assert records.new_start() == 0
    for start in (0, 0, 1):
        records.add(LATENCY, planted(1.25, 1.0), start)
    again = Records(path, ABOUT)
    assert (again.starts(LATENCY), again.new_start()) == ([0, 0, 1], 2)
    assert found(again, "http", "1 at once")["starts"] == 2
    path.write_text("\n".join([json.dumps(ABOUT), json.dumps({"measure": LATENCY, "arms": planted(1.0, 1.0)}), ""]))
    assert Records(path, ABOUT).starts(LATENCY) == [0]


def test_same_pairs_same_interval():
    values = np.random.default_rng(2).normal(size=20)
    assert spread(values) == spread(values)


def test_a_run_that_is_cut_off_goes_on_where_it_stopped(tmp_path, records):
    again = Records(tmp_path / "pairs.jsonl", ABOUT)
    assert again.set_aside is None
    assert again.pairs(LATENCY) == records.pairs(LATENCY)


def test_a_pair_that_was_cut_off_in_the_middle_of_its_line_is_taken_again(tmp_path, records):
    path = tmp_path / "pairs.jsonl"
    path.write_text(path.read_text() + '{"measure": "lab/http/1 at once", "ar')
    again = Records(path, ABOUT)
    assert len(again.pairs(LATENCY)) == 5
    again.add(LATENCY, planted(1.25, 1.0))
    assert len(Records(path, ABOUT).pairs(LATENCY)) == 6


@pytest.mark.parametrize("other", [{**ABOUT, "code": "abd"}, {**ABOUT, "machine": "another"}])
def test_pairs_of_other_code_or_of_another_machine_are_set_aside_not_mixed_in(tmp_path, records, other):
    again = Records(tmp_path / "pairs.jsonl", other)
    assert again.pairs(LATENCY) == []
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
    row = "| lab model, 1 at once, time to first token | 1.000 (1.000 to 1.000) | 1.250 (1.250 to 1.250) | 2.000"
    assert row in text
    assert (tmp_path / "benchmarks" / "lab.svg").read_text().count("<svg") == 1
    assert "(benchmarks/lab.svg)" in text
    report.write(json.loads(json.dumps(results(records))), document)
    assert document.read_text() == text


def test_a_document_without_markers_is_left_alone(tmp_path, records):
    document = tmp_path / "notes.md"
    document.write_text("mine")
    with pytest.raises(ValueError, match="markers"):
        report.write(results(records), document)
    assert document.read_text() == "mine"
