"""The benchmark varies one factor at a time, asks every arm the same, and can be run by part."""

import json
from dataclasses import replace

import pytest

from benchmarks.cost.batches import judge_prompt, prompts, requests, shared_prefix
from benchmarks.cost.guards import BLOCK, LET_PASS, spread_out
from benchmarks.cost.points import PARTS, SPEEDS, Load, Work, chosen, count, points, seconds
from benchmarks.cost.results import measure
from benchmarks.records import Records

SUBJECTS = list(SPEEDS)
EVERY = [(subject, point) for subject in SUBJECTS for point in points(subject)]
NAMES = [f"{subject}: {point.part}, {point.level}" for subject, point in EVERY]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_all_factors_of_the_issue_are_there(subject):
    """TTFT and time per token at 1 to 128 at once, 32 to 8k tokens, two mixes, 1 to 64 probes, 0 to 50 % of two
    actions.
    """
    by_part = {part: [point for point in points(subject) if point.part == part] for part in PARTS}
    assert {point.load.at_once for point in by_part["http"]} >= {1, 8, 32, 128}
    assert [point.work.requests for point in by_part["concurrency"]] == [1, 8, 32, 128]
    assert [point.work.prompt_tokens for point in by_part["prompt_length"]] == [32, 128, 512, 2048, 8192]
    assert [arm for point in by_part["probes"] for arm in point.arms if "probe" in arm][:4] == [
        "1 probe",
        "4 probes",
        "16 probes",
        "64 probes",
    ]
    for part in ("blocked", "steered"):
        shares = [getattr(point.work, part) / point.work.requests for point in by_part[part]]
        assert shares[:4] == [0.125, 0.25, 0.5, 1.0]
    assert [point.level for point in by_part["mix"]] == ["prefix cache", "long answers", "arrivals"]
    assert set(by_part["alternatives"][0].arms) >= {"hooks", "host_copy", "judge", "small_judge"}


@pytest.mark.parametrize(("subject", "point"), EVERY, ids=NAMES)
def test_a_point_has_its_baseline_and_enough_pairs_for_an_interval(subject, point):
    assert point.arms["unguarded"] == "unguarded"
    assert 2 <= count(point, subject) <= 60
    assert (point.load is None) == (point.part != "http")


def test_no_two_points_share_a_name(tmp_path):
    """Their pairs would be taken for pairs of one measure."""
    names = [measure(subject, point.part, point.level) for subject, point in EVERY]
    assert len(set(names)) == len(names)
    assert all(name.count("/") == 2 for name in names)


def test_the_whole_takes_about_an_hour():
    """By the speeds that the points are planned with, start-ups left out; `make bench` promises 75 minutes in all."""
    total = sum(count(point, subject) * seconds(point, subject) for subject, point in EVERY)
    assert 30 * 60 < total < 70 * 60


@pytest.mark.parametrize(
    ("names", "subjects", "parts"),
    [
        ([], SUBJECTS, set(PARTS)),
        (["lab.mix"], ["lab"], {"mix"}),
        (["mix"], SUBJECTS, {"mix"}),
        (["lab", "lab.mix"], ["lab"], set(PARTS)),
    ],
)
def test_points_are_chosen_by_part_by_subject_or_both(names, subjects, parts):
    found = chosen(names, SUBJECTS)
    assert list(found) == subjects
    for subject, own in found.items():
        assert own == [point for point in points(subject) if point.part in parts]


def test_one_level_is_chosen_and_one_that_is_not_there_is_an_error():
    [(subject, [point])] = chosen(["lab.blocked.100 %"], SUBJECTS).items()
    assert (subject, point.part, point.level) == ("lab", "blocked", "100 %")
    for wrong in ("mixes", "lab.blocked.99 %"):
        with pytest.raises(ValueError, match=f"'{wrong}' is none of"):
            chosen([wrong], SUBJECTS)


def test_pairs_can_be_multiplied():
    [[point]] = chosen(["lab.blocked.100 %"], SUBJECTS).values()
    assert count(point, "lab", 4) == 4 * count(point, "lab")


def test_arms_of_a_pair_get_the_same_prompts_and_other_pairs_get_others():
    work = Work(3, 20, 4)
    unguarded = requests(work, "unguarded", "unguarded", "mix 1")
    assert requests(work, "guarded", "guarded", "mix 1") == unguarded
    assert requests(work, "guarded", "guarded", "mix 2") != unguarded
    assert [len(each.prompt) for each in unguarded] == [20] * 3
    assert {each.max_tokens for each in unguarded} == {4}


def test_prompts_share_what_is_cached_and_no_more():
    work = Work(4, 40, 4, cached_tokens=32)
    found, prefix = prompts(work, "seed"), shared_prefix(work, "seed")
    assert len(prefix) == 32
    assert all(prompt[:32] == prefix for prompt in found)
    assert len({tuple(prompt[32:]) for prompt in found}) == 4


def test_blocked_requests_are_compared_with_their_prefill_and_the_rest_with_itself():
    """What a blocked request ought to cost: the unguarded engine is asked for one token of it."""
    work = Work(8, 16, 10, blocked=2, steered=3)
    asks = [each.asks for each in requests(work, "guarded", "acting", "seed")]
    assert asks == [BLOCK] * 2 + [{}] * 3 + [LET_PASS] * 3
    assert [each.max_tokens for each in requests(work, "unguarded", "unguarded", "seed")] == [1] * 2 + [10] * 6


def test_where_requests_arrive_the_first_are_of_different_lengths():
    """All of one length would end together, and the next ones arrive together."""
    lengths = [each.max_tokens for each in requests(Work(8, 16, 3, at_once=5), "guarded", "guarded", "seed")]
    assert lengths == [1, 2, 3, 1, 2, 3, 3, 3]


def test_a_judge_reads_instructions_and_the_prompt_and_says_one_token():
    [judge] = requests(Work(1, 16, 10), "judge", "control", "seed")
    [prompt] = prompts(Work(1, 16, 10), "seed")
    assert judge.max_tokens == 1
    assert judge.prompt[-16:] == prompt
    assert len(judge.prompt) == 48 + 16
    assert len(judge_prompt(range(500))) == 548


def test_an_eager_longer_load_is_expected_to_take_longer():
    """The bar of what is left counts these seconds; arms, tokens and rounds all count."""
    point = points("lab")[0]
    longer = replace(point, work=replace(point.work, output_tokens=100))
    fewer_arms = replace(point, arms={"unguarded": "unguarded"})
    queued = replace(point, work=replace(point.work, requests=8), load=Load(1))
    at_once = replace(queued, load=Load(8))
    assert seconds(longer, "lab") > seconds(point, "lab") > seconds(fewer_arms, "lab")
    assert seconds(queued, "lab") > seconds(at_once, "lab")


def test_tapped_blocks_are_distinct_and_spread_out():
    assert spread_out(24, 4) == [4, 9, 14, 19]
    assert spread_out(6, 4) == [1, 2, 3, 4]
    assert spread_out(6, 6) == [0, 1, 2, 3, 4, 5]
    assert spread_out(24, 1) == [12]


def test_a_run_goes_on_by_the_number_of_pairs_that_are_there(tmp_path):
    """Names with spaces and signs survive the file."""
    about = {"machine": "m", "code": "c"}
    for _, point in EVERY:
        Records(tmp_path / "pairs.jsonl", about).add(measure("lab", point.part, point.level), {"unguarded": {}})
    again = Records(tmp_path / "pairs.jsonl", about)
    assert len(again.pairs(measure("lab", "blocked", "12.5 %"))) == 2
    assert json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0]) == about
