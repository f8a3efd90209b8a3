"""Wrapped copies of training prompts: alike for both classes, whole, reproducible, and never apart from their
originals.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import make_prompts, write_prompts

from calibration.evaluation.unseen.left_out import leave_out
from calibration.fitting.training_set import TrainingSet, set_aside
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.settings import Settings
from calibration.prompts import wrapping_texts
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.splits import read_splits
from calibration.prompts.template import encode_prompts
from calibration.prompts.wrapping import wrap_prompts

TEXTS = ("NAMES", "PERSONAS", "RULES", "FRAMES", "APPLICATIONS", "DEMANDS", "CLOSINGS")


@pytest.fixture
def prompts(tmp_path):
    """A hundred prompts, one in four harmful, of two sources."""
    lines = [line | {"source": ("one", "two")[row % 2]} for row, line in enumerate(make_prompts(200, 5))]
    return load_prompts(write_prompts(tmp_path / "p.jsonl", lines)).prompts


def test_half_of_each_class_is_wrapped_and_the_request_stands_in_it(prompts):
    """The share is of either class; a wrapped prompt holds its original's request, and keeps its line, source and
    label.
    """
    wrapped, by_line = wrap_prompts(prompts, 0.5), {prompt.line: prompt for prompt in prompts}
    for harmful in (False, True):
        count = sum(prompt.is_harmful == harmful for prompt in prompts)
        assert sum(prompt.is_harmful == harmful for prompt in wrapped) == round(count / 2)
    for copy in wrapped:
        original = by_line[copy.line]
        assert original.text in copy.text
        assert len(copy.text) > len(original.text)
        assert (copy.source, copy.is_harmful) == (original.source, original.is_harmful)


def test_wrappers_do_not_tell_the_classes_apart(prompts):
    """Lengths of what is around the request have the same distribution in both classes (Kolmogorov-Smirnov, n =
    200).
    """
    from scipy.stats import ks_2samp

    by_line = {prompt.line: prompt for prompt in prompts}
    added = [(copy.is_harmful, len(copy.text) - len(by_line[copy.line].text)) for copy in wrap_prompts(prompts, 1.0)]
    sides = [[length for harmful, length in added if harmful == label] for label in (False, True)]
    assert ks_2samp(*sides).pvalue > 0.01


def test_the_same_prompts_are_wrapped_in_the_same_way_each_time(prompts):
    """An interrupted run finds its recorded activations again."""
    assert wrap_prompts(prompts, 0.3) == wrap_prompts(prompts, 0.3)
    assert wrap_prompts(prompts, 0.0) == ()


def test_braces_in_a_request_stay_as_they_are(tmp_path):
    """A request that talks of `{name}` or `{request}` is wrapped as it was written."""
    asked = "what does {request} mean beside {name}?"
    lines = [
        {"prompt": prompt, "label": label} for prompt, label in ((asked, "harmful"), (f"Say, {asked}", "harmless")) * 40
    ]
    for copy in wrap_prompts(load_prompts(write_prompts(tmp_path / "p.jsonl", lines)).prompts, 1.0):
        assert "what does {request} mean beside {name}?" in copy.text


def test_each_text_has_its_place_for_the_request_and_no_unknown_one():
    """Frames and applications hold one request; every text can be filled; none is there twice."""
    for name in TEXTS:
        texts = getattr(wrapping_texts, name)
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert text.count("{request}") == (name in ("FRAMES", "APPLICATIONS"))
            assert "{" not in text.replace("{request}", "").replace("{name}", "")


def test_a_copy_and_its_original_are_never_on_two_sides(planted_chat, tmp_path):
    """In no division of the training prompts does one side hold what the other was wrapped from."""
    lines = [line | {"source": ("one", "two", "three")[row % 3]} for row, line in enumerate(make_prompts(240, 5))]
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", lines))
    originals = encode_prompts(planted_chat.tokenizer, file, 4096)
    together = originals + wrapped_copies(originals)
    training = TrainingSet.split(planted_chat, together, None, 1)
    fold = leave_out(training, "two")
    pairs = [(training.fit, training.select), (fold.training.fit, fold.judged), (fold.training.fit, fold.left_out)]
    pairs += [(each.fit, each.select) for each in training.folds()]
    assert not any(together.prompts[row].is_wrapped for row in [*fold.judged, *fold.left_out])
    assert any(together.prompts[row].is_wrapped for row in fold.training.fit)
    unnamed = TrainingSet.split(planted_chat, encoded_without_sources(planted_chat, lines, tmp_path), None, 1)
    pairs += [(each.fit, each.select) for each in unnamed.folds()]
    for first, second in pairs:
        assert min(len(first), len(second)) > 0
        assert not {together.prompts[row].line for row in first} & {together.prompts[row].line for row in second}


def encoded_without_sources(chat, lines, folder):
    bare = [{key: value for key, value in line.items() if key != "source"} for line in lines]
    originals = encode_prompts(chat.tokenizer, load_prompts(write_prompts(folder / "bare.jsonl", bare)), 4096)
    return originals + wrapped_copies(originals)


def wrapped_copies(originals):
    """Every second prompt as a copy, with the tokens of the original: how it reads does not matter here."""
    copies = originals.subset(np.arange(0, 240, 2))
    return replace(copies, prompts=tuple(replace(prompt, is_wrapped=True) for prompt in copies.prompts))


def test_a_share_set_aside_is_of_either_class(planted_chat, tmp_path):
    """A quarter of the harmful prompts and a quarter of the harmless ones, however few of them there are."""
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(200, 5, harmful_share=0.1)))
    prompts = encode_prompts(planted_chat.tokenizer, file, 4096)
    chosen = set_aside(prompts, np.arange(200), 0.25)
    assert (int(prompts.harmful[chosen].sum()), int((~prompts.harmful[chosen]).sum())) == (5, 45)


def test_a_calibration_wraps_training_prompts_only(planted, splits, tmp_path):
    """Copies that the context holds are trained on too; validation and test stay as they were given."""
    settings = Settings(only=("classifiers",), wrap=1.0, limit=40, keep_work=True)
    done = calibrate(planted.folder, read_splits(**splits), tmp_path / "artifact", settings)
    (inputs,) = tmp_path.glob("*/*/settings-*.json")
    counts = json.loads(inputs.read_text())
    assert 80 < counts["prompts"]["train"] <= 160
    assert counts["prompts"]["validation"] == 420
    assert counts["prompts"]["train"] + counts["skipped"]["train"] == 160
    assert done.report.num_harmful + done.report.num_harmless == 400
