"""Shares of traffic from labels that were picked unevenly: unbiased, covered by their intervals, never mixed."""

import numpy as np
import pytest
from scipy.stats import binomtest

from guard.store.label import Label
from guard.tuning.estimates import estimated, estimates, share
from tests.guard.tuning.recorded import in_memory

DRAWS = 500
DESIGNS = {
    # Of the traffic: shares and chances of its parts, and which share of each part is a hit, per hit in all.
    "borderline first": ((0.05, 0.05, 0.9), (1, 1 / 4, 1 / 16), (12.0, 2.0, 1 / 3)),
    "hits picked rarely": ((0.05, 0.05, 0.9), (1, 1 / 4, 1 / 16), (0.0, 0.0, 1 / 0.9)),
    "hits picked always": ((0.05, 0.05, 0.9), (1, 1 / 4, 1 / 16), (20.0, 0.0, 0.0)),
    "chance unrelated": ((0.05, 0.05, 0.9), (1, 1 / 4, 1 / 16), (1.0, 1.0, 1.0)),
}


@pytest.mark.parametrize(("hits", "count"), [(0, 50), (3, 200), (50, 50), (17, 23)])
def test_equal_chances_give_clopper_and_pearson(hits, count):
    """The exact interval of an independent implementation, whatever the chance that all have."""
    found = share(np.arange(count) < hits, np.full(count, 0.01))
    exact = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert found.is_even
    assert (found.value, found.hits, found.count) == (pytest.approx(hits / count), hits, count)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("rate", [0.005, 0.05])
@pytest.mark.parametrize("count", [50, 500, 2000])
def test_intervals_cover_the_planted_rate(design, rate, count):
    """In at least 93 % of 500 samples of `count` labels, and the estimates' mean is the rate."""
    shares, chances, lift = (np.array(each, dtype=float) for each in DESIGNS[design])
    rng = np.random.default_rng(count)
    picked = shares * chances / (shares * chances).sum()
    parts = rng.choice(len(shares), p=picked, size=(DRAWS, count))
    hits = rng.random((DRAWS, count)) < (rate * lift)[parts]
    found = [share(hit, chances[part]) for hit, part in zip(hits, parts, strict=True)]
    covered = np.mean([each.low <= rate <= each.high for each in found])
    assert covered >= 0.93
    values = np.array([each.value for each in found])
    assert abs(values.mean() - rate) < 5 * values.std() / np.sqrt(DRAWS) + 0.05 * rate


def test_a_heavier_decision_than_any_label_widens_the_interval():
    """What was never picked may be just what is heavy."""
    hits, chances = np.zeros(100, dtype=bool), np.ones(100)
    assert share(hits, chances, heaviest=16.0).high > 5 * share(hits, chances).high
    assert not share(hits, chances, heaviest=16.0).is_even


def test_labels_without_a_chance_stand_apart():
    """Neither is moved by the other; a kind without labels is none."""
    hits, chances = np.array([True, False, True, True]), np.array([0.5, 0.5, np.nan, np.nan])
    found = estimated(hits, chances)
    assert (found.known.value, found.unknown.value) == (0.5, 1.0)
    assert estimated(hits[:2], chances[:2]).unknown is None
    assert estimated(hits[2:], chances[2:]).known is None


def test_rates_of_rules_by_hand():
    """Weights 1 / chance in each ratio: of benign, of harmful, of the stopped, of all; unsure labels count nowhere."""
    found = in_memory({"harm": np.zeros(7)}, "bbbhhu-", [1, 0.5, 0.25, 1, 0.5, 1, np.nan])
    stopped = np.array([True, False, False, True, False, True, True])
    said = estimates(found, stopped, np.ones(7, dtype=bool))
    assert said.fpr.known.value == pytest.approx(1 / 7)
    assert said.recall.known.value == pytest.approx(1 / 3)
    assert said.precision.known.value == pytest.approx(1 / 2)
    assert said.prevalence.known.value == pytest.approx(3 / 10)
    assert said.labels == {Label.BENIGN: 3, Label.HARMFUL: 2, Label.UNSURE: 1, Label.WITHDRAWN: 0}
    left = estimates(found, stopped, np.arange(7) > 0)
    assert left.fpr.known.value == 0
    assert left.fpr.known.count == 2


def test_a_source_weighs_what_its_labels_say_whatever_its_factor():
    """Chances of one source all halved change nothing; uneven labels weigh less than as many even ones."""
    rng = np.random.default_rng(0)
    chances = np.concatenate([rng.choice([1.0, 1 / 16], size=200), np.ones(200)])
    sources = ["review"] * 200 + ["review, evenly"] * 200
    stopped, counted = rng.random(400) < 0.2, np.ones(400, dtype=bool)
    halved = chances * np.repeat([0.5, 1.0], 200)
    said = [
        estimates(in_memory({"harm": np.zeros(400)}, "b" * 400, each, sources=sources), stopped, counted).fpr.known
        for each in (chances, halved)
    ]
    assert (said[0].value, said[0].low, said[0].high) == pytest.approx((said[1].value, said[1].low, said[1].high))
    own = [share(stopped[part], chances[part]) for part in (slice(0, 200), slice(200, 400))]
    nearer = abs(said[0].value - own[1].value) < abs(said[0].value - own[0].value)
    assert nearer
    assert said[0].high - said[0].low < own[0].high - own[0].low
