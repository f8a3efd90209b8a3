"""Novelty scores: planted Gaussians, coordinates, neurons and words give the scores that independent arithmetic
gives.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from recorded import training_set
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from tiny import make_prompts

from calibration.evaluation.unseen.contenders import recorded_scores
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped
from calibration.methods.novelty.distance import Distance, Space
from calibration.methods.novelty.massive import massive, massive_in_recording, survey_tokens
from calibration.methods.novelty.out_of_distribution import fit_novelty
from calibration.recording.recording import Recording
from calibration.recording.request_scores import score_prompts
from calibration.studies.novelty.comparison import compare_novelty
from calibration.studies.novelty.likelihood import mean_log_probs
from calibration.studies.novelty.neuron_tests import Coverage, KeySpaceBox
from calibration.studies.novelty.parts import HARMFUL, UNSEEN_HARMFUL, UNSEEN_HARMLESS, PromptGroups
from probes.errors import CalibrationError
from probes.scoring import ProbeBank

NOTHING = np.zeros(32, dtype=bool)


@pytest.fixture
def training(planted_chat, tmp_path):
    """240 prompts of four sources, one of which is a jailbreak's."""
    names = ("one", "two", "three", "jailbreak:fiction")
    lines = [line | {"source": names[index % 4]} for index, line in enumerate(make_prompts(240, 0))]
    return training_set(planted_chat, tmp_path, lines)


@dataclass(frozen=True)
class PlantedRecording(Recording):
    """A recording of vectors given by place, the same at every block."""

    values: dict = field(default_factory=dict)

    def chunks(self, layer, where):
        """All in one piece."""
        yield np.arange(self.num_prompts), self.values[where].astype(np.float32)


def planted(training, where, values):
    """The training set with its recording replaced by planted vectors."""
    return replace(training, recording=PlantedRecording((), len(values), {where: values}))


def test_the_distance_is_the_difference_of_two_mahalanobis_distances():
    """Against scipy's distance with scikit-learn's shrunk precision, prompt by prompt."""
    rng = np.random.default_rng(0)
    benign = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)) + 3
    everything = np.concatenate([benign, rng.normal(size=(40, 5)) * 4 - 2])
    near, far = LedoitWolf().fit(benign), LedoitWolf().fit(everything)
    asked = rng.normal(size=(20, 5)) * 5
    expected = [
        mahalanobis(row, near.location_, near.precision_) ** 2 - mahalanobis(row, far.location_, far.precision_) ** 2
        for row in asked
    ]
    both = Distance.of(benign, everything)
    np.testing.assert_allclose(both(asked), expected, rtol=1e-8)
    plain = [mahalanobis(row, near.location_, near.precision_) ** 2 for row in asked]
    np.testing.assert_allclose(both.plain()(asked), plain, rtol=1e-8)


def test_the_components_are_principal_and_of_unit_spread(training):
    """Planted: three directions carry nearly all variance; the components are those, whitened over the rows given."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    spread = np.full(32, 0.01)
    spread[:3] = 30, 10, 3
    values = (rng.normal(size=(240, 32)) * spread) @ axes.T + 7
    space = Space.of(planted(training, 0, values), 1, 0, training.fit, NOTHING, size=3)
    components = space.project(planted(training, 0, values))[training.fit]
    np.testing.assert_allclose(np.cov(components.T, ddof=0), np.eye(3), atol=1e-4)
    directions = space.weight / np.linalg.norm(space.weight, axis=1, keepdims=True)
    assert np.abs(directions @ axes[:, :3]).max(axis=1).min() > 0.999
    assert space.explained > 0.999


def test_what_never_varies_has_no_components(training):
    """The error says which block and place."""
    with pytest.raises(CalibrationError, match="block 1 holds the same at content"):
        Space.of(planted(training, "content", np.ones((240, 32))), 1, "content", training.fit, NOTHING)


def test_a_massive_coordinate_is_found_and_has_no_say(training):
    """Planted in one prompt of ten, at 500 times the rest: with it left out, distances are those of a clean
    recording.
    """
    rng = np.random.default_rng(2)
    clean = rng.normal(size=(240, 32))
    clean[:, 5] = 0
    dirty = clean.copy()
    dirty[::10, 5] = 500 * rng.choice([-1, 1], size=24)
    assert massive(dirty).sum() == 24
    assert massive(dirty)[:, 5].sum() == 24
    sets = planted(training, 0, clean), planted(training, 0, dirty)
    found = [massive_in_recording(each, 0, 0, training.fit) for each in sets]
    assert [np.flatnonzero(mask).tolist() for mask in found] == [[], [5]]
    distances, blind = [], None
    for each, mask in zip(sets, found, strict=True):
        space = Space.of(each, 0, 0, training.fit, mask, size=16)
        components = space.project(each)
        distances.append(Distance.of(components[:100], components)(components))
        blind = space.weight
    assert not blind[:, 5].any()
    np.testing.assert_allclose(*distances, rtol=1e-6, atol=1e-8)
    seen = Space.of(sets[1], 0, 0, training.fit, NOTHING, size=16)
    assert np.abs(seen.weight[0]).argmax() == 5  # left in, it is the first component


def test_sparse_vectors_are_not_massive():
    """Where most coordinates are zero any other is infinitely above the median; at most one in a hundred is massive."""
    values = np.zeros((3, 200))
    values[:, :50] = np.arange(1, 51)
    assert massive(values).sum(axis=1).tolist() == [2, 2, 2]


def test_a_massive_activation_at_the_first_token_is_surveyed(training):
    """A coordinate that the embedding of the first token makes huge is found with its token, though no readout sees
    it.
    """
    with torch.no_grad():
        training.chat.model.model.embed_tokens.weight[1, 9] += 5000
    peak = survey_tokens(training)[0]
    assert (peak.coordinate, peak.position) == (9, 0)
    assert peak.ratio > 100
    assert np.flatnonzero(peak.massive).tolist() == [9]


def test_the_probe_is_served_as_it_was_fitted(training):
    """Token scores, readout and head on fresh passes give the recorded distances; the probe only escalates."""
    probe = fit_novelty(training).probes[0]
    assert (probe.spec.name, probe.spec.role, probe.spec.head) == ("novelty", "escalates", "mahalanobis")
    bank = ProbeBank.of([probe.spec], probe.tensors())
    served = score_prompts(training.chat, bank, training.prompts, title="scoring").scores[:, 0]
    np.testing.assert_allclose(served, recorded_scores(training, probe), rtol=1e-3, atol=1e-2)
    assert probe.spec.evidence["fold_auroc"] > 0.9
    assert served[training.harmful].mean() > served[~training.harmful].mean()


def test_coverage_flags_bins_that_benign_prompts_do_not_reach():
    """Planted: values of 0..1 and 9..10, nothing between; the gap and the outside are rare, the middle of either is
    not.
    """
    rng = np.random.default_rng(3)
    benign = (rng.random((2000, 4)) + 9 * (rng.random((2000, 4)) > 0.5)).astype(np.float32)
    coverage = Coverage.of(benign)
    asked = np.repeat([[0.5], [9.5], [5.0], [-3.0], [40.0]], 4, axis=1).astype(np.float32)
    np.testing.assert_array_equal(coverage(asked), [0, 0, 1, 1, 1])
    asked[0, 0] = 5
    assert coverage(asked)[0] == 0.25
    scaled = Coverage.of(benign * np.float32([1, 4096, 1, 1]))
    np.testing.assert_allclose(scaled(asked * np.float32([1, 4096, 1, 1])), coverage(asked))


def test_one_extreme_prompt_does_not_widen_the_bins():
    """A massive value among the benign leaves the gap a gap."""
    benign = np.random.default_rng(4).random((2000, 1)).astype(np.float32)
    benign[0] = 1e6
    assert Coverage.of(benign)(np.float32([[100.0], [0.5]])).tolist() == [1, 0]


def test_a_neuron_that_never_varied_covers_its_one_value():
    """Any other value of it is new."""
    coverage = Coverage.of(np.full((50, 1), 2.0, dtype=np.float32))
    assert coverage(np.float32([[2.0], [2.001], [0.0]])).tolist() == [0, 1, 1]


def test_the_box_is_the_smallest_that_holds_the_benign_prompts():
    """Bisection on the multiplier, the paper's way, ends where the largest standardised offset is."""
    benign = np.random.default_rng(5).normal(size=(300, 12)).astype(np.float32) * np.geomspace(1, 1e4, 12).astype("f4")
    box = KeySpaceBox.of(benign)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        holds = (np.abs(benign - benign.mean(0, dtype=float)) <= middle * benign.std(0, dtype=float)).all()
        low, high = (low, middle) if holds else (middle, high)
    assert box.multiplier == pytest.approx(high, rel=1e-9)
    assert box(benign).max() == 1.0
    outside = benign[:1].copy()
    outside[0, 11] = benign[:, 11].mean() + 2 * box.multiplier * benign[:, 11].std()
    assert box(outside)[0] == pytest.approx(2, rel=1e-4)


def test_neurons_without_spread_are_left_out_of_the_box():
    """They have no unit, and make no prompt infinitely far."""
    benign = np.float32([[0, 1], [0, 3], [0, 2]])
    assert KeySpaceBox.of(benign)(np.float32([[9, 2]])).tolist() == [0]


def test_log_probabilities_are_those_of_one_prompt_at_a_time(training):
    """Against a plain pass, over the words only: no token that all prompts begin with, none of the template's tail."""
    prompts = training.prompts.subset(range(12))
    found = mean_log_probs(training.chat, prompts, training.instruction_offset, "asking")
    start = next(i for i, column in enumerate(zip(*prompts.token_ids, strict=False)) if len(set(column)) > 1)
    assert start >= 2  # <bos> and <|user|> go before every prompt
    for ids, mean in zip(prompts.token_ids, found, strict=True):
        with torch.inference_mode():
            logits = training.chat.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = range(start, len(ids) - training.instruction_offset)
        assert mean == pytest.approx(np.mean([float(logits[t - 1, ids[t]]) for t in places]), abs=1e-5)


def test_a_model_is_no_likelier_than_itself(training):
    """The likelihood ratio is exactly zero, hence worth nothing; without a partner there is none."""
    found = fit_novelty(training)
    [study] = compare_novelty(replace(training, partner=training.chat), found)
    ratio = [row for row in study.tables[0].rows if row[0] == "likelihood ratio"]
    assert len(ratio) == 3
    assert all(row[4:6] == (0.5, 0.0) for row in ratio)
    [alone] = compare_novelty(training, found)
    assert "likelihood ratio" not in {row[0] for row in alone.tables[0].rows}
    assert "needs --partner" in alone.finding


def test_the_comparison_leaves_jailbreaks_out_of_every_fit(training):
    """Fitting prompts, the cut's and the groups' are disjoint, and only the unseen groups hold jailbreaks."""
    parts = PromptGroups.of(training)
    jailbreaks = np.flatnonzero(training.sources == "jailbreak:fiction")
    assert parts.unseen == "jailbreak sources"
    unseen = np.concatenate([parts.groups[UNSEEN_HARMFUL], parts.groups[UNSEEN_HARMLESS]])
    assert sorted(unseen) == jailbreaks.tolist()
    sides = [parts.background, parts.cut, *parts.groups.values()]
    assert len(np.unique(np.concatenate(sides))) == sum(map(len, sides)) == 240
    assert training.harmful[parts.groups[HARMFUL]].all()
    [study] = compare_novelty(training, fit_novelty(training))
    measured = {(row[0], row[2]): row for row in study.tables[0].rows}
    assert {name for name, _ in measured} == {
        "relative Mahalanobis", "plain Mahalanobis", "neuron coverage", "key-space box", "improbability",
    }  # fmt: skip
    assert measured["relative Mahalanobis", HARMFUL][4] > 0.9
    assert study.finding.startswith("With jailbreak sources left out of every fit")


def test_without_the_probe_there_is_nothing_to_compare(training):
    """The question does not arise, and that is said."""
    with pytest.raises(Skipped, match="no probe 'novelty'"):
        compare_novelty(training, Fitted())
