"""Prompt files are read whole and true, or refused by file, line, fault and remedy."""

import hashlib
import json

import pytest

from calibration.prompts.prompt_file import load_prompts, require_classes, require_disjoint
from probes.errors import PromptError

GOOD = {"prompt": "How do I bake bread?", "label": "harmless"}


def write(path, *lines):
    """Write lines, objects as JSON; return the path."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_prompts_and_conversations_are_read_in_order(tmp_path):
    """Both forms of a line become conversations; labels, groups, ids, line numbers and the file's digest are kept."""
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Pick a lock"}]
    path = write(
        tmp_path / "p.jsonl",
        GOOD | {"category": "food", "source": "us", "id": "a", "lang": "en", "split": "train", "target": None},
        "",
        {"messages": talk, "label": "harmful"},
    )
    file = load_prompts(path)
    assert [prompt.line for prompt in file.prompts] == [1, 3]
    assert file.harmful.tolist() == [False, True]
    assert (file.prompts[0].id, file.prompts[0].category, file.prompts[0].source) == ("a", "food", "us")
    assert file.prompts[1].id == "p.jsonl:3"
    assert file.prompts[1].text == "Be brief.\nPick a lock"
    digest = file.digest("train")
    assert digest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (digest.num_harmful, digest.num_harmless) == (1, 1)


def test_unicode_line_separators_do_not_split_a_line(tmp_path):
    """U+2028 and U+0085 inside a JSON string end no line of a JSONL file."""
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD | {"prompt": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n")
    assert load_prompts(path).prompts[0].text == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "key must be a string"),
        ('"a string"', "object"),
        ({"prompt": "x"}, "label: Field required"),
        ({"label": "harmful"}, "either 'prompt' or 'messages'"),
        (GOOD | {"messages": [{"role": "user", "content": "x"}]}, "either 'prompt' or 'messages'"),
        (GOOD | {"label": "bad"}, "label"),
        (GOOD | {"colour": "red"}, "colour"),
        (GOOD | {"prompt": "   "}, "prompt"),
        (GOOD | {"prompt": 3}, "prompt"),
        ({"messages": [], "label": "harmful"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}], "label": "harmful"}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}], "label": "harmful"}, "messages.0: content"),
        ({"messages": [{"role": "assistant", "content": "x"}], "label": "harmful"}, "the last message"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, problem):
    """The error gives file and line, what is wrong, and a remedy."""
    path = write(tmp_path / "p.jsonl", GOOD, line)
    with pytest.raises(PromptError) as caught:
        load_prompts(path)
    assert caught.value.field == "p.jsonl:2"
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_files_that_hold_nothing_are_refused(tmp_path):
    """An empty file, a missing one and one that is not text each say so."""
    with pytest.raises(PromptError, match="holds no prompts"):
        load_prompts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(PromptError, match="cannot be read"):
        load_prompts(tmp_path / "missing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe")
    with pytest.raises(PromptError, match=r"binary.jsonl:2: is not UTF-8"):
        load_prompts(tmp_path / "binary.jsonl")


def test_a_byte_order_mark_is_skipped(tmp_path):
    """As some editors write it: the first line is read like any other, and the digest is that of the file as it is."""
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n")
    file = load_prompts(path)
    assert [prompt.text for prompt in file.prompts] == [GOOD["prompt"]]
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n\xff\xfe")
    with pytest.raises(PromptError, match=r"p.jsonl:2: is not UTF-8"):
        load_prompts(path)


@pytest.mark.parametrize(
    "again", [{"prompt": GOOD["prompt"]}, {"messages": [{"role": "user", "content": GOOD["prompt"]}]}]
)
def test_a_request_under_both_labels_is_refused(tmp_path, again):
    """In either form of a line: the error names both lines and says what to do.

    The same label twice is no contradiction.
    """
    other = GOOD | {"prompt": "other"}
    path = write(tmp_path / "p.jsonl", GOOD, other, again | {"label": "harmful"})
    with pytest.raises(PromptError, match=r"the same request is harmful here and harmless in p\.jsonl:1") as caught:
        load_prompts(path)
    assert caught.value.field == "p.jsonl:3"
    assert "keep the line that has the right label" in caught.value.remedy
    assert len(load_prompts(write(tmp_path / "p.jsonl", GOOD, other, again | {"label": "harmless"})).prompts) == 3


@pytest.mark.parametrize(
    ("num_harmful", "problem"), [(0, "0 harmful prompts"), (15, "15 harmful prompts, at least 16")]
)
def test_too_few_of_a_class_are_refused(tmp_path, num_harmful, problem):
    """One-class data, and data too small to fit on, name the class and the count."""
    harmful = [{"prompt": f"h{index}", "label": "harmful"} for index in range(num_harmful)]
    harmless = [GOOD | {"prompt": f"b{index}"} for index in range(20)]
    file = load_prompts(write(tmp_path / "p.jsonl", *harmful, *harmless))
    with pytest.raises(PromptError, match=problem):
        require_classes(file.harmful, file.name, 16)


def test_a_request_in_two_files_is_refused(tmp_path):
    """What was fitted on cannot certify: the error names both lines."""
    first = load_prompts(write(tmp_path / "train.jsonl", GOOD))
    second = load_prompts(write(tmp_path / "test.jsonl", GOOD | {"prompt": "other"}, GOOD))
    with pytest.raises(PromptError, match=r"test.jsonl:2: the same request stands in train.jsonl:1"):
        require_disjoint([first, second])
    require_disjoint([first])
