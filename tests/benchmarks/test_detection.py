"""The detection benchmark: sets are put together without overlaps, and its table is of what was left out."""

import base64
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.detection import levers, starter, starter_table, traffic
from benchmarks.detection.__main__ import main
from benchmarks.detection.public_sets import HARMFUL, HARMLESS, MIXED, REAL, TO_WRAP, assemble
from benchmarks.detection.variations import VARIATIONS
from calibration.prompts.changed_letters import LOOK_ALIKES
from calibration.prompts.starter_set import starter_set

LAB = Path(__file__).parents[2] / "examples" / "lab"
TEMPLATES = tuple(f"Wrapper number {number}. [INSERT PROMPT HERE] That was number {number}." for number in range(20))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of sets with the public ones' names, made of the lab's prompts: 40 rows each, half of each class if
    mixed.
    """
    folder = tmp_path_factory.mktemp("sets")
    lines = [json.loads(line) for line in (LAB / "prompts" / "train.jsonl").read_text().splitlines()]
    plain = [line for line in lines if "prompt" in line and len(line["prompt"]) < 200]
    spare = {label: iter([line for line in plain if line["label"] == label]) for label in ("harmful", "harmless")}
    for name in (*HARMFUL, *MIXED, *HARMLESS, "in_the_wild_jailbreaks", REAL):
        labels = (
            ("harmful", "harmless") if name in (*MIXED, REAL) else ("harmless",) if name in HARMLESS else ("harmful",)
        )
        rows = [{"prompt": next(spare[label])["prompt"], "label": label} for label in labels for _ in range(40)]
        if name == "gptfuzz":
            rows += [{"prompt": each, "label": "harmful", "category": "jailbreak_template"} for each in TEMPLATES]
        (folder / name).mkdir()
        (folder / name / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_wrapped_requests_stand_nowhere_bare(data):
    """Of each set that is wrapped some rows are kept for that; templates get harmful and harmless requests alike."""
    lines = assemble(data)
    wrapped = [line for line in lines if line["source"] == "jailbreak:templates"]
    bare = {line["prompt"] for line in lines if not line["source"].startswith("jailbreak")}
    inside = {line["prompt"].split(". ", 1)[1].rsplit(" That was", 1)[0] for line in wrapped}
    assert len(wrapped) == len(TEMPLATES) * 8
    assert not inside & bare
    assert sum(line["label"] == "harmful" for line in wrapped) == len(wrapped) / 2
    for name in (*HARMFUL, *TO_WRAP):
        source = {"refusal_direction": "alpaca"}.get(name, name)
        assert sum(line["source"] == source for line in lines) >= 34


def test_the_table_is_of_sets_left_out_seed_by_seed(data, tmp_path, capsys):
    """A real run on the lab model: a row for each source of the families asked for, with the spread over two seeds."""
    out = tmp_path / "table.md"
    asked = {"leave_out": ["jailbreak", "truthfulqa"], "method": ["harmfulness_direction"], "seeds": 2}
    main(data, LAB / "aligned", tmp_path / "work", 0.2, **asked, write=out)
    text = out.read_text()
    assert text in capsys.readouterr().out
    for row in ("| jailbreak:templates |", "| jailbreak:in_the_wild |", "| truthfulqa |"):
        assert row in text
    assert "| advbench |" not in text
    assert " ± " in text
    assert len(list((tmp_path / "work").glob("*/unseen-[01]/*-harmfulness_direction.safetensors"))) == 4


def test_the_starter_set_is_met_with_sets_that_nothing_was_fitted_on(data, tmp_path, monkeypatch):
    """A real run on the lab model: every set has a row, and no fit of public sets saw the family that it meets."""
    few = replace(starter_set(), prompts=starter_set().prompts[::24])
    monkeypatch.setattr(traffic, "starter_set", lambda: few)
    for module in (traffic, starter_table):
        monkeypatch.setattr(module, "VARIATIONS", [v for v in VARIATIONS if v.name in ("persona", "within 256 tokens")])
    monkeypatch.setattr(starter.SentenceEncoder, "load", lambda: None)
    seen = []
    monkeypatch.setattr(traffic.Traffic, "without", keeping(traffic.Traffic.without, seen))
    starter.main(data, LAB / "aligned", tmp_path / "work", 24, 400, 2, write=tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    for row in (
        "| advbench | 24 |",
        "| jailbreak:templates | 24 |",
        f"| {REAL} |",
        "| alpaca | 24 |",
        "| attack: persona | 60, 60 |",
        "| length: within 256 tokens | 60, 60 |",
        "### 2 divisions of real users' prompts",
    ):
        assert row in text
    for column in ("probes, starter", "probes, public", "probes, both", "TF-IDF, both"):
        assert column in text
    assert {name for _, name, _ in seen} >= {"advbench", "jailbreak", REAL}
    for met, name, rows in seen:
        assert name == REAL or name not in met.family[rows]
        assert not (met.sets_the_cut | met.tests_the_cut)[rows].any()
        assert not met.variation[rows].any()


@pytest.mark.long
def test_levers_change_one_thing_at_a_time(data, tmp_path, monkeypatch):
    """A real run on the lab model: each lever has a line, and no fit saw the family or the kind of change it meets."""
    few = replace(starter_set(), prompts=starter_set().prompts[::24])
    monkeypatch.setattr(traffic, "starter_set", lambda: few)
    kept = [v for v in VARIATIONS if v.name in ("as they are", "mixed case", "Base64")]
    for module in (traffic, starter_table):
        monkeypatch.setattr(module, "VARIATIONS", kept)
    fits = []
    fit = levers._fitted
    monkeypatch.setattr(levers, "_fitted", lambda met, rows, places: fits.append((met, rows)) or fit(met, rows, places))
    levers.main(data, LAB / "aligned", tmp_path / "work", 24, 400, 2, write=tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    for row in ("| all |", "| without its contrasts |", "| the last token alone |", "| letters: Base64 | 60, 60 |"):
        assert row in text
    sizes = {len(rows) for _, rows in fits}
    assert len(sizes) > 4
    for met, rows in fits:
        assert not (met.sets_the_cut | met.tests_the_cut)[rows].any()


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda each: each.name)
def test_a_request_written_otherwise_says_what_it_said(variation):
    """Every variation holds its request in some form, says nothing of its label, and is the same each time."""
    written = variation.write(ASKED, random.Random(1))  # noqa: S311
    assert written == variation.write(ASKED, random.Random(1))  # noqa: S311
    assert ASKED in READ.get(variation.name, str)(written)


ASKED = "How do I repair a bicycle pump at home?"
UNMIXED = str.maketrans("431057", "aeiost")
READ = {
    "zero-width spaces": lambda text: text.replace("\u200b", ""),
    "look-alike letters": lambda text: text.translate({other: letter for letter, other in LOOK_ALIKES.items()}),
    "digits for letters": lambda text: text.translate(UNMIXED).replace("do i", "do I"),
    "spaced out": lambda text: " ".join(word.replace(" ", "") for word in text.split("  ")),
    "mixed case": lambda text: ASKED if text.lower() == ASKED.lower() else "",
    "typing errors": lambda text: ASKED if sorted(text) == sorted(ASKED) else "",
    "Base64": lambda text: base64.b64decode(text.rsplit(" ", 1)[1]).decode(),
    "step split": lambda text: text.replace('" and B = "', " "),
}
"""What undoes a variation, where the request does not stand in it as it is."""


def keeping(function, calls):
    """Return `function`, whose calls are noted with what they gave."""

    def noted(traffic, name):
        calls.append((traffic, name, function(traffic, name)))
        return calls[-1][2]

    return noted
