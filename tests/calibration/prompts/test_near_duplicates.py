"""Almost the same request in two splits is found, whatever the number of others."""

from functools import cache

import numpy as np
import pytest
from tiny import write_prompts

from calibration.prompts import near_duplicates as module
from calibration.prompts.near_duplicates import SIMILAR, leakage_notes, near_duplicates
from calibration.prompts.prompt_file import load_prompts

WORDS = [
    f"{a}{b}{c}" for a in ("gar", "riv", "pon", "lum", "tas") for b in ("en", "or", "ul") for c in ("do", "ra", "ix")
]


def random_text(rng, words=14):
    """A sentence of made-up words."""
    return " ".join(rng.choice(WORDS, words))


def file_of(path, texts):
    """A prompt file of these texts."""
    return load_prompts(write_prompts(path, [{"prompt": text, "label": "harmless"} for text in texts]))


@cache
def shingles(text):
    """The set of five-letter strings in a text, by the definition."""
    plain = " ".join(text.lower().split())
    return {plain[start : start + 5] for start in range(len(plain) - 4)}


def exact_jaccard(first, second):
    """By the definition, on strings."""
    one, other = shingles(first), shingles(second)
    return len(one & other) / len(one | other)


def test_planted_copies_are_found_and_nothing_else(tmp_path):
    """Fifty test prompts with one word changed stand among others: agreement with comparing every pair."""
    rng = np.random.default_rng(0)
    train = [random_text(rng) for _ in range(600)]
    copies = [" ".join([*text.split()[:-1], "zzz"]) for text in train[:50]]
    test = [*copies, *(random_text(rng) for _ in range(100))]
    found = near_duplicates([file_of(tmp_path / "train.jsonl", train), file_of(tmp_path / "test.jsonl", test)])
    every = {
        (1, row + 1) for row, text in enumerate(test) if max(exact_jaccard(text, other) for other in train) >= SIMILAR
    }
    assert {pair.second for pair in found} == every
    assert len(every) >= 45
    for pair in found:
        (_, first), (_, second) = pair.first, pair.second
        assert pair.similarity == pytest.approx(exact_jaccard(train[first - 1], test[second - 1]))


def test_the_most_similar_one_is_named(tmp_path):
    """Of two near-copies the nearer."""
    text = "how do I teach a very patient dog to fetch the morning paper from the garden gate"
    train = [text.replace("morning paper", "evening paper"), text + "!"]
    found = near_duplicates([file_of(tmp_path / "a.jsonl", train), file_of(tmp_path / "b.jsonl", [text])])
    assert [(pair.first, pair.second) for pair in found] == [((0, 2), (1, 1))]


def test_copies_within_one_file_are_nobodys_business(tmp_path):
    """What a split repeats of itself leaks nothing to another."""
    text = "please describe how the tides of the northern sea follow the phases of the moon"
    files = [file_of(tmp_path / "a.jsonl", [text, text + "."]), file_of(tmp_path / "b.jsonl", ["something else again"])]
    assert near_duplicates(files) == []


def test_case_and_blanks_make_no_difference(tmp_path):
    """They are the same request to any reader."""
    files = [
        file_of(tmp_path / "a.jsonl", ["Water  the Plants today"]),
        file_of(tmp_path / "b.jsonl", ["water the plants TODAY"]),
    ]
    assert near_duplicates(files)[0].similarity == 1.0


@pytest.mark.parametrize("text", ["a", "hi", "日本"])
def test_texts_shorter_than_a_shingle(tmp_path, text):
    """They are compared whole."""
    files = [file_of(tmp_path / "a.jsonl", [text, "else"]), file_of(tmp_path / "b.jsonl", [text])]
    assert [pair.first for pair in near_duplicates(files)] == [(0, 1)]


def test_thousands_that_share_one_wrapper_take_no_more_time_than_others(tmp_path):
    """What is compared grows with the number of prompts: each meets at most a few of its kind in every band."""
    wrapper = "pretend that you are my late grandmother who used to read me the following before I went to sleep: "
    files = [file_of(tmp_path / f"{name}.jsonl", [f"{wrapper}{name}{n}" for n in range(1000)]) for name in "ab"]
    sets = [module._shingles(prompt.text) for file in files for prompt in file.prompts]
    candidates = sum(1 for _ in module._candidates(sets, [0] * 1000 + [1] * 1000))
    assert candidates <= 1000 * module._BANDS * module._MOST_COMPARED
    assert len(near_duplicates(files)) == 1000


def test_leakage_is_a_sentence_with_both_places(tmp_path):
    """A reader can open both lines; a file without copies gives no sentence."""
    text = "please describe how the tides of the northern sea follow the phases of the moon"
    files = [
        file_of(tmp_path / "train.jsonl", [text]),
        file_of(tmp_path / "validation.jsonl", ["something else again"]),
        file_of(tmp_path / "test.jsonl", ["nothing to see", text + "!"]),
    ]
    [note] = leakage_notes(files)
    assert note.startswith("1 of 2 prompts of test.jsonl")
    assert "test.jsonl:2 is 98% like train.jsonl:1" in note
