"""Probes by kind of harm: each tells its category from other harm, and is judged by its category alone."""

import numpy as np
import pytest
from recorded import training_set
from tiny import HARMFUL_WORDS, make_prompts

from calibration.evaluation.evaluate import evaluate
from calibration.evaluation.unseen.contenders import recorded_scores
from calibration.fitting.judged import judged_by
from calibration.fitting.metrics import auroc
from calibration.methods.classifiers.categories import fit_categories

KINDS = {"Money & goods": HARMFUL_WORDS[:2], "sabotage": HARMFUL_WORDS[2:4], "rare": HARMFUL_WORDS[4:]}


def of_one_kind(lines):
    """The same requests; the harmful words of each are of one kind, which is its category. 20 are of the rare one."""
    rare = 0
    for number, line in enumerate(lines):
        kind = list(KINDS)[number % 3 if rare < 20 else number % 2]
        words = line["prompt"].split()
        if line["label"] == "harmless":
            yield line | {"category": "chat"}
            continue
        rare += kind == "rare"
        told = [KINDS[kind][number % 2] if word in HARMFUL_WORDS else word for number, word in enumerate(words)]
        yield line | {"prompt": " ".join(told), "category": kind, "id": str(number)}


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's recorded prompts; the harmful ones are of two frequent kinds and of a rare one."""
    return training_set(planted_chat, tmp_path, list(of_one_kind(make_prompts(500, 0))))


@pytest.fixture
def probes(training):
    """The probes by their category."""
    return {probe.spec.category: probe for probe in fit_categories(training).probes}


def test_there_is_a_probe_for_each_frequent_category(probes):
    """A category of 20 prompts has none, harmless prompts' categories neither; names are as policies write them."""
    assert {name: probe.spec.name for name, probe in probes.items()} == {
        "Money & goods": "category_money_goods",
        "sabotage": "category_sabotage",
    }


def test_a_probe_tells_its_category_from_other_harm(training, probes):
    """Its own prompts score above both harmless ones and those of other kinds."""
    categories = np.array([prompt.category for prompt in training.prompts.prompts])
    for name, probe in probes.items():
        scores, own = recorded_scores(training, probe), categories == name
        assert auroc(scores[own], scores[~training.harmful]) > 0.95
        assert auroc(scores[own], scores[training.harmful & ~own]) > 0.9


def test_a_probe_is_judged_by_its_own_category(training, probes):
    """Its report counts harmful prompts of its category; where there is none, and for other probes, all."""
    specs = [probes["sabotage"].spec, probes["sabotage"].spec.model_copy(update={"name": "all", "category": None})]
    prompts = training.prompts
    scores = np.random.default_rng(0).normal(size=(len(prompts.prompts), 2)).astype(np.float32)
    report = evaluate(prompts, scores, specs, scores[:300], split="test", controls={})
    own = sum(prompt.category == "sabotage" for prompt in prompts.prompts)
    counts = {name: each.evaluation.num_harmful for name, each in report.probes.items()}
    assert counts == {"category_sabotage": own, "all": int(prompts.harmful.sum())}
    unknown = specs[0].model_copy(update={"category": "nowhere"})
    assert len(judged_by(unknown, prompts)) == len(prompts.prompts)


def test_without_categories_there_is_a_note(planted_chat, tmp_path):
    """Prompts that name no category give no probes, and a sentence about why."""
    bare = [{key: value for key, value in line.items() if key != "category"} for line in make_prompts(120, 0)]
    found = fit_categories(training_set(planted_chat, tmp_path, bare))
    assert not found.probes
    assert "no category is named by 30 harmful training prompts" in found.notes[0]
