"""The prompts that Foreguard ships: whole, divisible, and the same when they are written to files."""

import re
from collections import Counter

import pytest
from typer.testing import CliRunner

from calibration.prompts.chosen import chosen_prompts
from calibration.prompts.near_duplicates import near_duplicates
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS
from calibration.prompts.splits import SPLITS, read_splits
from calibration.prompts.starter_set import starter_set
from guard.cli import application

CERTIFIES_A_HUNDREDTH = 299
"""Harmless prompts from which 1 % can be certified with 95 % confidence."""


SEXUAL = ("sexual", "erotic_requests", "sexual_coercion", "crude_remarks_and_questions")
"""Categories of requests about sex."""


@pytest.fixture(scope="module")
def starter():
    """The set."""
    return starter_set()


def test_no_request_stands_in_it_twice(starter):
    """Not with other letters or marks either."""
    keys = Counter(" ".join(re.findall(r"\w+", prompt.text.lower())) or prompt.text for prompt in starter.prompts)
    assert [key for key, count in keys.items() if count > 1] == []


def test_it_is_divided_so_that_a_hundredth_can_be_certified(starter):
    """Each split has both classes of every kind that is large enough; validation certifies 1 %; no near-copies."""
    files = chosen_prompts()
    assert (~files["validation"].harmful).sum() >= CERTIFIES_A_HUNDREDTH
    for kind, count in Counter((prompt.source, prompt.is_harmful) for prompt in starter.prompts).items():
        for split in SPLITS:
            own = [p for p in files[split].prompts if (p.source, p.is_harmful) == kind]
            assert count < MINIMUM_PER_CLASS or own, (kind, split)
    assert near_duplicates(list(files.values())) == []


def test_harmful_requests_say_nothing_of_minors_and_sex(starter):
    """Nothing sexual about minors is shipped, on either side."""
    minors = re.compile(r"\b(child\w*|kids?|minors?|underage|teen\w*|girls?|boys?|pupils?|school\w*)\b", re.IGNORECASE)
    found = [prompt.text for prompt in starter.prompts if prompt.category in SEXUAL and minors.search(prompt.text)]
    assert found == []


def test_written_to_files_it_calibrates_the_same(tmp_path):
    """`foreguard prompts` writes files that are read as what a calibration without files uses."""
    done = CliRunner().invoke(application(), ["prompts", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    read = read_splits(**{split: tmp_path / f"{split}.jsonl" for split in SPLITS})
    for split, file in chosen_prompts().items():
        assert [(p.id, p.messages, p.is_harmful, p.category, p.source, p.lang) for p in file.prompts] == [
            (p.id, p.messages, p.is_harmful, p.category, p.source, p.lang) for p in read[split].prompts
        ]
