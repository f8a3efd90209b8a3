"""One prompt file, divided into what is fitted on, what certifies, and what is reported."""

import json
from collections import Counter

import pytest

from calibration.prompts.chosen import chosen_prompts
from calibration.prompts.near_duplicates import near_duplicates
from calibration.prompts.prompt_file import load_prompts, require_disjoint
from calibration.prompts.splits import SPLITS, divide
from probes.errors import PromptError

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "glade", "heath", "inlet", "jetty", "knoll", "ledge")


def line(number, label, source, category):
    """Return a prompt of words that no other number has in this order."""
    words = [WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(3)]
    return {"prompt": f"{' '.join(words)} {number * 7919}", "label": label, "source": source, "category": category}


def write(path, rows):
    """Write a prompt file and read it."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return load_prompts(path)


@pytest.fixture
def rows():
    """Two labels, two sources, and categories of 50 prompts and of one."""
    found = [
        line(number, label, source, f"many {number % 2}")
        for number, (label, source) in enumerate(
            (label, source) for label in ("harmless", "harmful") for source in ("a", "b") for _ in range(100)
        )
    ]
    return found + [line(1000 + number, "harmless", "c", f"alone {number}") for number in range(20)]


def test_each_label_source_and_category_is_divided_alike(rows, tmp_path):
    """Half, three tenths and two tenths of every group, and of the groups of one prompt together."""
    files = divide(write(tmp_path / "all.jsonl", rows))
    counts = {
        split: Counter((p.is_harmful, p.source, p.category if p.source != "c" else None) for p in file.prompts)
        for split, file in files.items()
    }
    for group, size in Counter(
        (r["label"] == "harmful", r["source"], r["category"] if r["source"] != "c" else None) for r in rows
    ).items():
        for split, share in zip(SPLITS, (0.5, 0.3, 0.2), strict=True):
            assert abs(counts[split][group] - share * size) <= 2, (split, group)
    assert sum(len(file.prompts) for file in files.values()) == len(rows)


def test_the_order_of_lines_does_not_matter_and_their_number_hardly(rows, tmp_path):
    """The same prompts in another order are divided in the same way, so that results can be compared."""
    texts = [
        {split: {p.text for p in file.prompts} for split, file in divide(write(tmp_path / name, each)).items()}
        for name, each in (("all.jsonl", rows), ("turned.jsonl", rows[::-1]))
    ]
    assert texts[0] == texts[1]


def test_near_copies_stay_together(rows, tmp_path):
    """Neither a repeated request nor one with a letter more is in two splits: what was fitted on would certify."""
    copies = [{**row, "prompt": row["prompt"] + end, "category": "copies"} for row in rows for end in ("", "!")]
    files = list(divide(write(tmp_path / "all.jsonl", rows + copies)).values())
    require_disjoint(files)
    assert near_duplicates(files) == []


def test_a_class_that_is_too_small_is_said(rows, tmp_path):
    """The error names the split and the remedy."""
    few = [row for row in rows if row["label"] == "harmless"] + [row for row in rows if row["label"] == "harmful"][:40]
    with pytest.raises(PromptError, match=r"all\.jsonl \(validation\): 12 harmful prompts, at least 16 are needed"):
        divide(write(tmp_path / "all.jsonl", few))


def test_one_file_or_three(rows, tmp_path):
    """One file beside three, or two of three, are errors that name the option."""
    path = tmp_path / "all.jsonl"
    write(path, rows)
    with pytest.raises(PromptError, match="--prompts: stands beside files for single splits"):
        chosen_prompts(path, train=path)
    with pytest.raises(PromptError, match="--validation: is missing"):
        chosen_prompts(train=path, test=path)
    assert {split: file.sha256 for split, file in chosen_prompts(path).items()} == {
        split: file.sha256 for split, file in divide(load_prompts(path)).items()
    }
