"""The benchmark of causes: a copy of a chat model learns to refuse, and what studies found of it is written down."""

from pathlib import Path

import torch

from benchmarks.causes import aligned
from benchmarks.causes.__main__ import findings
from calibration.fitting.study import StudyResult, Table
from calibration.model.chat_model import ChatModel
from calibration.model.generation import generate
from calibration.prompts.splits import divide
from calibration.prompts.starter_set import starter_set
from calibration.prompts.template import encode_prompts
from calibration.report.evidence import Evidence

BASE = Path(__file__).parents[2] / "examples" / "lab" / "base"


def test_the_copy_refuses_what_it_was_taught_to_refuse_and_answers_the_rest(tmp_path, monkeypatch):
    """The lab's base model answers everything; its copy refuses harmful prompts, and harmless ones as seldom as
    before.
    """
    monkeypatch.setattr(aligned, "_MOST", {True: 12, False: 12})
    monkeypatch.setattr(aligned, "_EPOCHS", 12)
    monkeypatch.setattr(aligned, "_RATE", 1e-3)
    aligned.save_aligned(BASE, tmp_path / "copy")
    chat = ChatModel.load(tmp_path / "copy")
    assert next(chat.model.parameters()).dtype in (torch.bfloat16, torch.float32)
    prompts = encode_prompts(chat.tokenizer, divide(starter_set())["train"], chat.context, skip_long=True)
    openings = {tuple(chat.tokenizer(text).input_ids[:2]) for text in aligned.REFUSALS}
    shares = {}
    for is_harmful in (True, False):
        answers = generate(chat, aligned._short(prompts, is_harmful=is_harmful), 4)
        shares[is_harmful] = sum(answer[:2] in openings for answer in answers) / len(answers)
    assert shares[True] > 0.8
    assert shares[False] < 0.2


def test_findings_are_written_with_tables_that_fit_a_page():
    """A table of a hundred rows stays in the artifact; a study that was not asked is named with its reason."""
    small = Table(name="small", columns=("what", "share"), rows=(("a|b", 0.12345), ("c", 2)))
    large = Table(name="large", columns=("what",), rows=tuple((number,) for number in range(100)))
    study = StudyResult(name="one", title="One", finding="It was so.", tables=(small, large))
    text = "\n".join(findings(Evidence.model_construct(studies=(study,), not_asked={"other": "no partner"})))
    assert "### One\n\nIt was so.\n" in text
    assert "| what | share |\n| --- | --- |\n| a\\|b | 0.123 |\n| c | 2 |" in text
    assert "| 99 |" not in text
    assert "### other\n\nNot asked: no partner" in text
