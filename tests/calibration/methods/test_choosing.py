"""What is chosen is what holds on sources that were not fitted on."""

import numpy as np
import pytest
from recorded import training_set
from tiny import make_prompts

from calibration.fitting.choosing import CrossValidation
from calibration.fitting.linear import Linear
from calibration.methods.classifiers.linear_classifiers import fit_classifiers, fit_logistic


def lines(sources):
    """Prompts whose sources take turns."""
    return [line | {"source": sources[index % len(sources)]} for index, line in enumerate(make_prompts(320, 5))]


@pytest.fixture
def training(planted_chat, tmp_path):
    """A training set of eight sources."""
    return training_set(planted_chat, tmp_path, lines([f"s{index}" for index in range(8)]))


def test_no_source_is_on_both_sides_of_a_fold(training):
    """Each prompt is judged at most once, by a reading that saw none of its source; both classes stand on either
    side.
    """
    folds = training.folds()
    assert len(folds) == 4
    judged = np.concatenate([fold.select for fold in folds])
    assert len(judged) == len(set(judged.tolist()))
    for fold in folds:
        assert not set(training.sources[fold.fit]) & set(training.sources[fold.select])
        for rows in (fold.fit, fold.select):
            assert set(training.harmful[rows].tolist()) == {True, False}


def test_prompts_of_one_source_are_divided_at_random_and_said_to_be(planted_chat, tmp_path):
    """There is nothing to keep apart: the choice is made all the same, and a note says how."""
    training = training_set(planted_chat, tmp_path, lines(["only"]))
    cross_validation = CrossValidation.of(training)
    assert not cross_validation.by_source
    assert len(cross_validation.folds) == 4
    assert any("too few sources" in note for note in fit_classifiers(training).notes)


def test_a_mark_of_the_source_is_worth_nothing_on_another(training, monkeypatch):
    """A coordinate of its own gives each source's labels away: perfect in a random division, chance in one by
    sources.
    """
    number = np.array([int(name[1:]) for name in training.sources])
    mark = np.where(training.harmful, 1.0, -1.0) * 3 + 0.1 * np.random.default_rng(0).standard_normal(len(number))
    own = np.eye(8)[number] * mark[:, None]
    monkeypatch.setattr(type(training), "features", lambda _, *args: own.astype(np.float32)[args[2]])
    cross_validation = CrossValidation.of(training)
    area = cross_validation.judge(cross_validation.logits(fit_logistic, 0, 0)).auroc
    at_random = fit_logistic(own[training.fit].astype(np.float32), training.harmful[training.fit])
    logits = at_random(own[training.select].astype(np.float32))
    assert area < 0.7
    assert logits[training.harmful[training.select]].min() > logits[~training.harmful[training.select]].max()


def test_the_penalty_is_what_unseen_sources_bear(training, monkeypatch):
    """A label faint in 200 coordinates needs a strong one; one in a narrow direction between two, a weak one."""
    rng, sign = np.random.default_rng(0), np.where(training.harmful, 1.0, -1.0)
    faint = rng.standard_normal((len(sign), 200)) + 0.12 * sign[:, None]
    common = rng.standard_normal(len(sign))
    narrow = np.stack([common, common + 0.05 * sign + 0.03 * rng.standard_normal(len(sign))], axis=1)
    evidence = []
    for features in (faint, narrow):
        monkeypatch.setattr(type(training), "features", lambda _, *args, own=features: own.astype(np.float32)[args[2]])
        probes = {probe.spec.name: probe.spec for probe in fit_classifiers(training).probes}
        evidence.append(probes["logistic"].evidence["inverse_penalty"])
    assert evidence[0] < 0.02 < 0.2 < evidence[1]


def test_each_logit_comes_of_a_fit_without_its_prompt(training):
    """A reading that knows the prompts it was fitted on by heart knows none of those it is judged by."""
    cross_validation, seen = CrossValidation.of(training), []

    def by_heart(features, _harmful):
        seen.append({row.tobytes() for row in features})
        return Linear(np.zeros(features.shape[1]), float(len(seen)))

    logits = cross_validation.logits(by_heart, 1, 0)
    features = training.features(1, 0, cross_validation.rows)
    for fold, (fitted, judged) in enumerate(cross_validation.folds):
        assert set(logits[judged]) == {fold + 1.0}
        assert {features[row].tobytes() for row in fitted} == seen[fold]
