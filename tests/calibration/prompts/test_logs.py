"""Requests as people have them: logs and public files of several formats are read alike."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from calibration.prompts.prompt_file import load_prompts, read_labels
from probes.errors import PromptError

ROWS = [
    {"prompt": "How do I bake bread?", "label": "harmless", "category": "food"},
    {"prompt": 'Say "no", then\nleave', "label": "harmful", "category": "talk"},
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": None, "refusal": None, "annotations": [],
     "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Rain."}]},
]  # fmt: skip


def as_csv(path):
    """Quotes, a line break in a cell, an empty cell, CRLF and a byte-order mark."""
    text = 'prompt,label,category,lang\r\nHow do I bake bread?,harmless,food,\r\n"Say ""no"", then\nleave",harmful,talk,\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())


def as_parquet(path):
    """Arrow fills in the keys that only some rows have."""
    parquet.write_table(pyarrow.Table.from_pylist([ROWS[0] | {"lang": None}, ROWS[1] | {"source": None}]), path)


WRITERS = {
    "p.jsonl": lambda path: path.write_text("".join(f"{json.dumps(row)}\r\n" for row in ROWS)),
    "p.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "p.csv": as_csv,
    "p.parquet": as_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_says_the_same(tmp_path, name):
    """JSONL with CRLF, a JSON list, CSV and Parquet: the same prompts, labels and categories."""
    WRITERS[name](tmp_path / name)
    found = load_prompts(tmp_path / name).prompts
    assert [(prompt.text, prompt.is_harmful, prompt.category) for prompt in found] == [
        (row["prompt"], row["label"] == "harmful", row["category"]) for row in ROWS
    ]


@pytest.mark.parametrize("cell", [TALK, json.dumps(TALK)], ids=["a list", "a cell of text"])
def test_a_logged_request_is_read_whole(tmp_path, cell):
    """Roles, tool calls, tools and the template's options are kept; sampling is not looked at; nulls are nothing."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    line = {
        "messages": cell,
        "tools": tools,
        "model": "m",
        "temperature": 0.2,
        "reasoning_effort": "low",
        "label": "harmless",
    }
    (file := tmp_path / "p.jsonl").write_text(json.dumps(line))
    (prompt,) = load_prompts(file).prompts
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "tool"]
    assert prompt.messages[2].tool_calls[0].function.name == "weather"
    assert prompt.messages[3].content == "Rain."
    assert json.loads(prompt.tools) == tools
    assert json.loads(prompt.template_options) == {"reasoning_effort": "low"}


def test_an_answer_at_the_end_is_left_out(tmp_path):
    """A log has what the model answered; the request ends before that. Where nothing is asked, the error says so."""
    answered = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (file := tmp_path / "p.jsonl").write_text(json.dumps({"messages": answered, "label": "harmless"}))
    (prompt,) = load_prompts(file).prompts
    assert [message.content for message in prompt.messages] == ["Hi"]
    file.write_text(json.dumps({"messages": answered[1:], "label": "harmless"}))
    with pytest.raises(PromptError, match="nothing is asked"):
        load_prompts(file)


def test_sharegpt_is_read(tmp_path):
    """`conversations` of `from` and `value`, with a tool's observation, ending with the model's answer."""
    said = [
        ("system", "Be brief."),
        ("human", "Rain?"),
        ("gpt", "Let me see."),
        ("observation", "Rain."),
        ("gpt", "Yes."),
    ]
    talk = [{"from": who, "value": text} for who, text in said]
    (file := tmp_path / "p.json").write_text(json.dumps([{"id": "1", "conversations": talk, "label": "harmless"}]))
    (prompt,) = load_prompts(file).prompts
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "tool"]


def test_what_a_row_says_is_written_back(tmp_path):
    """A prompt written as a line is read as the same prompt."""
    line = {
        "messages": TALK,
        "tools": [{"type": "function"}],
        "label": "harmful",
        "lang": "en",
        "id": "a",
        "source": "s",
    }
    parts = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}],
        "label": "harmless",
    }
    (file := tmp_path / "p.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(parts)}\n")
    first = load_prompts(file).prompts
    (again := tmp_path / "p2.jsonl").write_text("".join(f"{prompt.to_json()}\n" for prompt in first))
    assert [(p.id, p.request, p.is_harmful, p.source) for p in load_prompts(again).prompts] == [
        (p.id, p.request, p.is_harmful, p.source) for p in first
    ]


def test_labels_have_other_spellings_if_they_are_given(tmp_path):
    """Numbers, truth values and words, in any case; one that was not given is an error that names the option."""
    rows = [{"prompt": str(number), "label": label} for number, label in enumerate([1, 0, "TOXIC", "ok", "harmful"])]
    (file := tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    labels = read_labels(["1=harmful", "0=harmless", "toxic=harmful", "ok=harmless"])
    assert load_prompts(file, labels).harmful.tolist() == [True, False, True, False, True]
    with pytest.raises(PromptError, match=r"p\.jsonl:1: label: '1' is none of harmful, harmless") as caught:
        load_prompts(file)
    assert "--label 1=harmful" in str(caught.value)
    with pytest.raises(PromptError, match="--label: 'toxic' says nothing"):
        read_labels(["toxic"])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.csv", "prompt,label\na,b,c,d\n", "p.csv:2: has more cells than the header"),
        ("p.csv", 'prompt,label\n"a,harmless\n', r"p\.csv:\d: is no CSV"),
        ("p.json", "[{", "p.json:1: "),
        ("p.json", '[{"prompt": "a", "label": "harmless"}, 3]', "p.json:2: .*dictionary"),
        ("p.parquet", "no", "p.parquet: is no Parquet file"),
        ("p.csv", 'messages,label\n"[{",harmless\n', "p.csv:2: messages: is no JSON"),
        ("p.csv", f"messages,label\n{'[' * 100_000},harmless\n", "p.csv:2: messages: is no JSON"),
        ("p.json", "[" * 100_000, "p.json: is nested too deeply"),
        (
            "p.jsonl",
            '{"conversations": [{"from": ["x"], "value": 1}], "label": "harmless"}',
            r"jsonl:1: messages\.0\.role",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "text"}]}], "label": "harmless"}',
            "has no 'text'",
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path, name, content, problem):
    """The error has the file and, where there are lines, the line."""
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=problem):
        load_prompts(tmp_path / name)


def test_a_long_document_is_read_from_csv(tmp_path):
    """Longer than what Python's own reader takes."""
    (tmp_path / "p.csv").write_text(f"prompt,label\n{'word ' * 100_000},harmless\n")
    assert len(load_prompts(tmp_path / "p.csv").prompts[0].text) == 500_000


def test_a_part_that_is_no_text_is_refused(tmp_path):
    """An image cannot be calibrated on: the error names its type."""
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    (file := tmp_path / "p.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": image}], "label": "harmless"})
    )
    with pytest.raises(PromptError, match=r"p\.jsonl:1: messages\.0: content: a part of type 'image_url' is no text"):
        load_prompts(file)
