"""What other thresholds would have done, and which threshold keeps a rate: planted answers, counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from guard.decide import bind
from guard.threshold import certify
from guard.tuning.curves import curves
from guard.tuning.even import even
from guard.tuning.judged import LeftOut, Rules
from guard.tuning.roc import roc
from guard.tuning.target import target
from guard.tuning.what_if import what_if
from guard.verdict import Action
from probes.errors import CalibrationError
from tests.guard.tuning.recorded import in_memory


@pytest.fixture
def rules(policy):
    """A rule that blocks above 2 and one that flags above 1."""
    made = policy(("sure", "block", {"harm": {"above": 2}}), ("doubt", "flag", {"harm": {"above": 1}}))
    return Rules.of(bind(made, ["harm"], np.zeros((0, 1), np.float32)))


def one_source(labels):
    return np.full(len(labels), "review", dtype=object)


def test_counts_changes_and_rates(rules):
    """By action, by tenant and route, the decisions that change with the newest first, and rates before and after."""
    found = in_memory(
        {"harm": [3.0, 1.8, 1.2, 0.0, 1.7, np.nan]},
        "hbb-hb",
        [1.0] * 6,
        tenants=["a", "a", None, "a", "b", "b"],
        routes=["/r"] * 6,
        actions=[Action.BLOCK, Action.FLAG, Action.FLAG, Action.ALLOW, Action.BLOCK, Action.BLOCK],
    )
    said = what_if(found, rules, rules.moved("doubt", "harm", 1.5).moved("sure", "harm", 1.75))
    assert said.counts.before == {Action.ALLOW: 1, Action.FLAG: 3, Action.STEER: 0, Action.BLOCK: 1}
    assert said.counts.after == {Action.ALLOW: 2, Action.FLAG: 1, Action.STEER: 0, Action.BLOCK: 2}
    assert list(said.by_tenant) == ["a", "", "b"]
    assert said.by_tenant["a"].after[Action.BLOCK] == 2
    assert said.by_tenant[""].after[Action.ALLOW] == 1
    assert said.by_route["/r"] == said.counts
    assert said.changes.rows.tolist() == [1, 2]
    assert said.changes.keys.tolist() == found.keys[[1, 2]].tolist()
    assert (said.changes.before.tolist(), said.changes.after.tolist()) == (["flag", "flag"], ["block", "allow"])
    assert said.changes.rules.tolist() == ["sure", None]
    assert (said.before.fpr.known.value, said.after.fpr.known.value) == (1.0, 0.5)
    assert (said.before.recall.known.value, said.after.recall.known.value) == (1.0, 1.0)
    assert (said.judged, said.left_out, said.recorded_otherwise) == (5, {LeftOut.UNSCORED: 1}, 1)


def test_rates_count_from_the_action_that_is_asked_for(rules):
    """A flag is no block."""
    found = in_memory({"harm": [3.0, 1.5]}, "bb", [1, 1])
    assert what_if(found, rules, rules, stops=Action.BLOCK).before.fpr.known.value == 0.5


def test_the_target_is_certified_on_an_even_sample():
    """The threshold is that of `certify` on the labels that remain; else it says how many are missing."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=4000)
    chances = np.where(scores > 1, 1.0, 1 / 4)
    picked = rng.random(4000) < chances
    found = in_memory({"harm": scores}, ["b" if each else "-" for each in picked], np.where(picked, chances, np.nan))
    said = target(found, scores, 0.01)
    stays = even(found.keys[picked], chances[picked], found.sources[picked]).stays
    assert said.certified == certify(scores[picked][stays], 0.01, 0.95)
    assert (said.even, said.benign, said.unknown, said.missing) == (stays.sum(), picked.sum(), 0, 0)
    assert (scores[picked][stays] > 1).mean() == pytest.approx((scores > 1).mean(), abs=0.05)
    assert (scores > said.bounded).mean() <= 0.01 < (scores >= said.bounded).mean()
    rarer = target(found, scores, 0.001)
    assert (rarer.certified, rarer.needed, rarer.missing) == (None, 2995, 2995 - said.even)


def test_labels_of_unknown_chance_certify_nothing():
    """They are counted, so that the operator knows why."""
    found = in_memory({"harm": np.arange(400.0)}, "b" * 400)
    said = target(found, found.columns["harm"], 0.01)
    assert (said.certified, said.even, said.unknown, said.missing) == (None, 0, 400, 299)
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        target(found, found.columns["harm"], 1.5)


def test_thresholds_certified_on_thinned_labels_keep_their_rate():
    """Of 300 operators who label borderline decisions first, at most 28 get a threshold above the rate (99.9 % at 5 %).

    On all their labels certified alike, far fewer would: the threshold would be far too high to be of use.
    """
    rng = np.random.default_rng(1)
    broken, uneven = 0, []
    for _ in range(300):
        scores = rng.normal(size=3000)
        chances = np.where(np.abs(scores - 1.6) < 0.3, 1.0, 1 / 4)
        picked = np.flatnonzero(rng.random(3000) < chances)
        keys = rng.integers(0, 2**62, size=len(picked))
        stays = picked[even(keys, chances[picked], one_source(picked)).stays]
        broken += certify(scores[stays], 0.05).value < 1.6449
        uneven.append(certify(scores[picked], 0.05).value)
    assert 1 <= broken <= 28
    assert np.median(uneven) > 1.7


def test_roc_agrees_with_scikit_learn():
    """Points and area, weighted and not; a kind that has no label has no curve."""
    rng = np.random.default_rng(2)
    harmful = np.repeat([True, False], [40, 60])
    scores = np.round(rng.normal(size=100) + harmful, 1)
    chances = rng.choice([0.25, 1.0], size=100)
    letters = ["h" if each else "b" for each in harmful]
    for known, weights in ((True, 1 / chances), (False, np.ones(100))):
        curve = roc(in_memory({"harm": scores}, letters, chances if known else None), scores, known=known)
        fpr, tpr, _ = roc_curve(harmful, scores, sample_weight=weights, drop_intermediate=False)
        # scikit-learn cuts at a score and above; ours is strictly above: the same points but for the places of names.
        assert curve.fpr == pytest.approx(fpr)
        assert curve.tpr == pytest.approx(tpr)
        assert curve.auroc == pytest.approx(roc_auc_score(harmful, scores, sample_weight=weights))
        assert (curve.tpr_low <= curve.tpr).all()
        assert (curve.tpr <= curve.tpr_high).all()
    assert roc(in_memory({"harm": scores}, "b" * 100, chances), scores) is None
    few = roc(in_memory({"harm": scores[:50]}, letters[:50], [1.0] * 50), scores[:50])
    assert few.tpr_low is not None
    assert roc(in_memory({"harm": scores[30:45]}, letters[30:45], [1.0] * 15), scores[30:45]).tpr_low is None


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    """Ten thousand labels make a few hundred points, from nothing to everything."""
    scores = np.random.default_rng(3).normal(size=10_000)
    curve = roc(in_memory({"harm": scores}, "bh" * 5000, [1.0] * 10_000), scores)
    assert len(curve.fpr) < 320
    assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
    assert (np.diff(curve.fpr) >= 0).all()
    assert curve.fpr[curve.fpr > 0][0] <= 2e-3


def test_curves_share_their_bins():
    """Every score is in a bin, those far out in the last; empty and constant samples are no trouble."""
    own = np.concatenate([np.random.default_rng(4).normal(size=5000), [1e9, np.nan]])
    found = curves(own, np.zeros(100), np.ones(50), bins=20)
    assert len(found.edges) == 21
    assert (found.own.sum(), found.benign.sum(), found.harmful.sum()) == (5001, 1, 1)
    assert found.benign.argmax() < found.harmful.argmax()
    assert found.own_shares.sum() == pytest.approx(1)
    assert curves(np.zeros(0), np.zeros(0), np.zeros(0)).own.sum() == 0
    assert curves(np.ones(3), np.ones(3), np.zeros(0)).own.sum() == 3


def test_thinning_gives_every_decision_the_same_chance():
    """What stays is as likely in each part of the traffic; asked again, the same stays; unknown chances never do."""
    keys = np.random.default_rng(5).integers(0, 2**62, size=40_000)
    chances = np.repeat([1.0, 0.5, 0.25, np.nan], 10_000)
    found = even(keys, chances, one_source(keys))
    shares = [found.stays[10_000 * part : 10_000 * (part + 1)].mean() for part in range(4)]
    assert shares == pytest.approx([0.25, 0.5, 1.0, 0.0], abs=0.02)
    assert found.unknown == 10_000
    assert found.thinned == 30_000 - found.count
    assert (even(keys, chances, one_source(keys)).stays == found.stays).all()
    assert even(keys[:0], chances[:0], one_source(keys[:0])).count == 0


def test_each_source_is_thinned_for_itself():
    """Even labels beside borderline-first ones all stay, whatever the factor of their chances."""
    keys = np.random.default_rng(6).integers(0, 2**62, size=3000)
    chances, sources = np.repeat([1.0, 0.25, 1.0], 1000), np.repeat(["a", "a", "b"], 1000).astype(object)
    found = even(keys, chances, sources)
    assert found.stays[:1000].mean() == pytest.approx(0.25, abs=0.06)
    assert found.stays[1000:].all()
