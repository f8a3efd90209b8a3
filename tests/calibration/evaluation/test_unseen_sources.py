"""Leaving one source out shows what a probe is worth where it has not been."""

from dataclasses import replace

import numpy as np
import pytest
from recorded import training_set
from tiny import make_prompts

from calibration.evaluation.unseen import unseen_sources as module
from calibration.evaluation.unseen.contenders import TFIDF, ControlInputs, recorded_scores
from calibration.evaluation.unseen.left_out import WRAPPED, leave_out
from calibration.evaluation.unseen.unseen_sources import COMBINED, unseen_sources
from calibration.fitting.bank import bank_of
from calibration.methods.classifiers.linear_classifiers import fit_classifiers
from calibration.prompts.template import read_template
from calibration.recording.request_scores import score_prompts
from calibration.registry import methods, refitted
from probes.errors import CalibrationError
from probes.fingerprint import fingerprint

EVERY = refitted(list(methods()))
DIRECTION, CLASSIFIERS = methods()["harmfulness_direction"], methods()["classifiers"]
FLIP = {"harmful": "harmless", "harmless": "harmful"}


@pytest.fixture
def training(planted_chat, tmp_path):
    """Two honest sources of 400 prompts and one of 60 that calls everything by its opposite."""
    lines = [line | {"source": ("one", "two")[index % 2]} for index, line in enumerate(make_prompts(800, 0))]
    liars = [line | {"source": "liar", "label": FLIP[line["label"]]} for line in make_prompts(460, 1)[400:]]
    return training_set(planted_chat, tmp_path, lines + liars)


def test_an_honest_source_is_recalled_and_a_lying_one_is_not(training, tmp_path):
    """What the liar calls harmless is flagged, and what it calls harmful is not: its labels had no say."""
    found = unseen_sources(training, tmp_path / "unseen", EVERY).sources
    assert set(found) == {"one", "two", "liar"}
    for probe in ("logistic", "lda", "stack", "pooled", COMBINED, TFIDF):
        assert found["liar"][probe].flagged.value > 0.9
        assert found["liar"][probe].recall.value < 0.1
    for source in ("one", "two"):
        assert found[source]["lda"].auroc > 0.85
        assert found[source]["lda"].recall.count + found[source]["lda"].flagged.count == 400


def test_controls_that_nobody_asked_for_leave_a_file_all_the_same(training, tmp_path):
    """Without refusals and without an encoder there is nothing to keep, and a run that goes on finds that out at
    once.
    """
    kept = tmp_path / "controls.safetensors"
    for _ in range(2):
        beside = ControlInputs.of(training, (), kept, embed=False)
        assert (beside.embeddings, beside.refusal) == (None, None)
        assert kept.exists()


def test_the_source_left_out_takes_no_part(training):
    """Neither in fitting, nor in choosing, nor in the cut; and no prompt has two parts."""
    labels = np.array([prompt.source for prompt in training.prompts.prompts])
    fold = leave_out(training, "two")
    parts = [fold.training.fit, fold.training.select, fold.judged]
    for rows in parts:
        assert not (labels[rows] == "two").any()
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert set(training.harmful[fold.judged].tolist()) == {True, False}
    assert (labels[fold.left_out] == "two").all()


def test_a_run_that_was_stopped_does_finished_parts_no_more(training, tmp_path, monkeypatch):
    """Four of six parts are measured, the run dies, the next one measures the other two and gives the same table."""
    brief = {"methods": [DIRECTION]}
    whole, real, calls = unseen_sources(training, tmp_path / "whole" / "unseen", **brief), module._measure, []

    def dying(fold, method, beside):
        calls.append(method)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(fold, method, beside)

    monkeypatch.setattr(module, "_measure", dying)
    with pytest.raises(KeyboardInterrupt):
        unseen_sources(training, tmp_path / "broken" / "unseen", **brief)
    assert unseen_sources(training, tmp_path / "broken" / "unseen", **brief) == whole
    assert len(calls) == 7


def test_a_method_that_is_asked_for_later_is_all_that_is_done(training, tmp_path, monkeypatch):
    """Scores by the others are read back; the table has both, and the combination may use both."""
    first = unseen_sources(training, tmp_path / "unseen", methods=[DIRECTION], only=("one", "liar"))
    real, calls = module._measure, []

    def counting(fold, method, beside):
        calls.append(method)
        return real(fold, method, beside)

    monkeypatch.setattr(module, "_measure", counting)
    both = [DIRECTION, CLASSIFIERS]
    found = unseen_sources(training, tmp_path / "unseen", methods=both, only=("one", "liar")).sources
    assert calls == [CLASSIFIERS, CLASSIFIERS]
    assert found["one"]["harmfulness"] == first.sources["one"]["harmfulness"]
    assert {"harmfulness", "lda", COMBINED, TFIDF} <= set(found["liar"])


@pytest.mark.parametrize("missing", [("one", "two", "liar"), ("two",)])
def test_a_probe_that_is_not_found_in_every_fold_is_not_in_the_table(training, tmp_path, monkeypatch, missing):
    """A model may refuse in one fold and not in another: columns stay with their names, and the others are shown."""
    real, readout = module.probe_scores, methods()["refusal_readout"]
    expected = unseen_sources(training, tmp_path / "plain" / "unseen", methods=[DIRECTION])

    def without(fold, method, rows):
        left_out = training.prompts.prompts[fold.left_out[0]].source
        return {} if method is readout and left_out in missing else real(fold, method, rows)

    monkeypatch.setattr(module, "probe_scores", without)
    both = [readout, DIRECTION]
    assert unseen_sources(training, tmp_path / "both" / "unseen", methods=both) == expected
    with pytest.raises(CalibrationError, match="no probe was found in every fold"):
        unseen_sources(training, tmp_path / "both" / "unseen", methods=both[:1])


def test_members_of_a_family_are_left_out_together(training):
    """What stands before a colon names the family: no wrapper is met by a probe that has seen its siblings."""
    names = {"one": "jailbreak:one", "two": "plain", "liar": "jailbreak:liar"}
    prompts = [replace(prompt, source=names[prompt.source]) for prompt in training.prompts.prompts]
    renamed = replace(training, prompts=replace(training.prompts, prompts=tuple(prompts)))
    fold = leave_out(renamed, "jailbreak")
    assert {prompts[row].source for row in fold.left_out} == {"jailbreak:one", "jailbreak:liar"}
    assert {prompts[row].source for row in np.concatenate([fold.training.fit, fold.judged])} == {"plain"}


@pytest.fixture
def wrapped(planted_chat, tmp_path):
    """Two sources of 300 prompts each, all wrapped once more; long copies do not fit."""
    lines = [line | {"source": ("one", "two")[index % 2]} for index, line in enumerate(make_prompts(600, 2))]
    return training_set(planted_chat, tmp_path, lines, wrap=1.0)


def test_wrapped_copies_are_left_out_like_a_family(wrapped):
    """No fit has seen a wrapper, nor any form of the requests whose copies are met; no copy sets the cut."""
    prompts = wrapped.prompts.prompts
    fold = leave_out(wrapped, WRAPPED)
    learned = np.concatenate([fold.training.fit, fold.training.select])
    assert len(fold.left_out) >= 40
    assert all(prompts[row].is_wrapped for row in fold.left_out)
    assert not any(prompts[row].is_wrapped for row in [*learned, *fold.judged])
    assert not {prompts[row].line for row in fold.left_out} & {prompts[row].line for row in learned}
    assert set(fold.sources) == {WRAPPED}


def test_what_wrappers_do_has_a_row_and_a_say(wrapped, tmp_path, monkeypatch):
    """Copies are a row of the table, and a fold by which every combination is chosen but the one that they judge."""
    real, given = module.choose_combination, []

    def asked(folds, *arguments):
        given.append(len(folds))
        return real(folds, *arguments)

    monkeypatch.setattr(module, "choose_combination", asked)
    found = unseen_sources(wrapped, tmp_path / "unseen", methods=[DIRECTION])
    assert list(found.sources) == ["one", "two", WRAPPED]
    assert list(found.named) == ["one", "two"]
    assert found.sources[WRAPPED]["harmfulness"].recall.count >= 20
    assert given == [2, 2, 2, 3]


def test_recorded_scores_are_the_scores_that_serve(training, planted):
    """A product with recorded activations gives what the probe bank gives in a forward pass, for every classifier."""
    probes = fit_classifiers(training).probes
    bank = bank_of(fingerprint(planted.folder), probes, read_template(training.chat.tokenizer))
    scored = score_prompts(training.chat, bank, training.prompts, title="scoring").scores
    for column, probe in enumerate(probes):
        np.testing.assert_allclose(recorded_scores(training, probe), scored[:, column], rtol=1e-4, atol=1e-3)


def test_one_source_is_no_ground_to_say_anything(planted_chat, tmp_path):
    """The error says which key to add."""
    training = training_set(planted_chat, tmp_path, make_prompts(80, 2))
    with pytest.raises(CalibrationError, match="1 family") as caught:
        unseen_sources(training, tmp_path / "unseen", EVERY)
    assert '"source"' in caught.value.remedy


def test_a_class_that_stands_in_one_source_only(planted_chat, tmp_path):
    """Without that source nothing is left to learn from, and the error names it."""
    lines = [line | {"source": f"all {line['label']}"} for line in make_prompts(120, 3)]
    training = training_set(planted_chat, tmp_path, lines)
    with pytest.raises(CalibrationError, match="without source 'all harmful' 0 harmful"):
        unseen_sources(training, tmp_path / "unseen", EVERY)
