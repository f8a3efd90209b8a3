"""The promises kept: over 300 samples, cuts are met with a large fresh population whose true rates are known.

A promise at 95 % confidence may be broken in 5 % of samples. Of 300, then, the number of broken ones is at most
binomial with rate 0.05, and exceeds its 99.9 % quantile, 28, once in a thousand such tests.
"""

import numpy as np
import pytest
from scipy.stats import binom

from guard.learn_then_test import Risk, learn_then_test
from guard.threshold import certify, certify_band, certify_strata

DRAWS = 300
MOST = int(binom.ppf(0.999, DRAWS, 0.05))
FRESH = 200_000


def continuous(rng, size, shift=0.0):
    """Scores without ties."""
    return rng.normal(shift, 1.0, size)


def quantised(rng, size, shift=0.0):
    """Scores on a grid of halves, as a coarse 8-bit readout would give: nearly all are tied."""
    return np.round(2 * rng.normal(shift, 1.0, size)) / 2


def lumped(rng, size, shift=0.0):
    """Nineteen of twenty share one score: a probe that is silent on most prompts."""
    return np.where(rng.random(size) < 0.95, -9.0, rng.normal(shift, 1.0, size))


@pytest.fixture(params=[continuous, quantised, lumped], ids=lambda draw: draw.__name__)
def draw(request):
    """A distribution of benign scores."""
    return request.param


def share_above(fresh, cut):
    """The rate that a cut has on a sorted population."""
    return 1 - np.searchsorted(fresh, cut, side="right") / len(fresh)


def test_the_bound_is_the_stated_one():
    """28 of 300."""
    assert MOST == 28


@pytest.mark.parametrize(("size", "target"), [(299, 0.01), (1000, 0.01), (400, 0.05), (3000, 0.001)])
def test_single_cuts(draw, size, target):
    """At the smallest sample and beyond it, tied or not."""
    rng = np.random.default_rng(size)
    fresh = np.sort(draw(rng, FRESH))
    broken = sum(share_above(fresh, certify(draw(rng, size), target).value) > target for _ in range(DRAWS))
    assert broken <= MOST


def test_a_cut_that_is_right_on_average_would_fail_here():
    """The marginal conformal cut, ceil((n + 1)(1 - target)) from below, breaks the promise in a good third of
    samples.
    """
    rng = np.random.default_rng(0)
    fresh = np.sort(continuous(rng, FRESH))
    cuts = [np.sort(continuous(rng, 1000))[int(np.ceil(1001 * 0.99)) - 1] for _ in range(DRAWS)]
    assert sum(share_above(fresh, cut) > 0.01 for cut in cuts) > 4 * MOST


def test_flagging_at_the_cut_would_fail_here():
    """Of tied scores the cut itself must not be flagged: `score >= value` breaks the promise in most samples."""
    rng = np.random.default_rng(1)
    fresh = np.sort(quantised(rng, FRESH))
    cuts = [certify(quantised(rng, 1000), 0.01).value for _ in range(DRAWS)]
    assert sum(share_above(fresh, np.nextafter(cut, -np.inf)) > 0.01 for cut in cuts) > 0.5 * DRAWS


def test_strata(draw):
    """Three strata of different size and score: all keep the rate at once."""
    rng, sizes = np.random.default_rng(2), {"en": (700, 0.0), "de": (300, 0.5), "zh": (150, 1.0)}
    fresh = {name: np.sort(draw(rng, FRESH, shift)) for name, (_, shift) in sizes.items()}
    labels = np.repeat(list(sizes), [size for size, _ in sizes.values()])
    broken = 0
    for _ in range(DRAWS):
        scores = np.concatenate([draw(rng, size, shift) for size, shift in sizes.values()])
        found = certify_strata(scores, labels, 0.05)
        assert found.too_small == {}
        broken += any(share_above(each, found.threshold.value) > 0.05 for each in fresh.values())
    assert broken <= MOST


@pytest.mark.parametrize("divided", [False, True])
def test_bands(draw, divided):
    """Both rates are kept at once, with and without strata, and the band is never upside down."""
    rng, size = np.random.default_rng(3), 1200
    shifts = {"one turn": 0.0, "several turns": 0.7 if divided else 0.0}
    fresh = {name: np.sort(draw(rng, FRESH, shift)) for name, shift in shifts.items()}
    labels = np.repeat(list(shifts) if divided else ["all", "all"], size)
    broken = 0
    for _ in range(DRAWS):
        scores = np.concatenate([draw(rng, size, shift) for shift in shifts.values()])
        band = certify_band(scores, labels, 0.01, 0.05)
        flag, block = band.flag.threshold.value, band.block.threshold.value
        assert flag <= block
        broken += any(share_above(each, block) > 0.01 or share_above(each, flag) > 0.05 for each in fresh.values())
    assert broken <= MOST


GRID = np.linspace(0.5, 3.5, 31)
FLAGS, BLOCKS = np.array([(flag, block) for flag in GRID for block in GRID if flag <= block]).T
LIMITS = {"block": 0.01, "flag": 0.05, "miss": 0.25}
HARM = 3.0


def means_of(benign, harmful):
    """What the three risks of every pair of cuts are in a sample, `[3, C]`."""
    benign, harmful = np.sort(benign), np.sort(harmful)
    return np.array([share_above(benign, BLOCKS), share_above(benign, FLAGS), 1 - share_above(harmful, FLAGS)])


def sampled_risks(draw, rng, num_benign, num_harmful):
    """The three risks on a sample of benign and harmful prompts."""
    means = means_of(draw(rng, num_benign), draw(rng, num_harmful, HARM))
    counts = (num_benign, num_benign, num_harmful)
    return [
        Risk(name, limit, mean, count, is_binary=True)
        for (name, limit), mean, count in zip(LIMITS.items(), means, counts, strict=True)
    ]


def broken_limits(draw, rng):
    """Which pairs of cuts break a limit in the population, `[C]`."""
    means = means_of(draw(rng, FRESH), draw(rng, FRESH, HARM))
    return (means > np.array(list(LIMITS.values()))[:, None]).any(axis=0)


@pytest.mark.parametrize("plan", ["bonferroni", "fallback", "fixed sequence"])
@pytest.mark.parametrize("draw", [continuous, quantised], ids=lambda draw: draw.__name__, indirect=True)
def test_joint_limits(draw, plan):
    """Of all configurations that Learn then Test certifies, none breaks any limit, in all but a few samples.

    The order is learned from an independent sample, as tuning learns it from the artifact's scores.
    """
    rng = np.random.default_rng(4)
    breaks = broken_limits(draw, rng)
    assert 0 < breaks.sum() < len(breaks)
    earlier = sampled_risks(draw, rng, 1000, 300)
    order = np.argsort(np.max([risk.p_values for risk in earlier], axis=0), kind="stable")
    rest = 1 / np.arange(2, len(FLAGS) + 1)
    shares = {
        "bonferroni": None,
        "fallback": np.r_[0.5, 0.5 * rest / rest.sum()],
        "fixed sequence": np.r_[1.0, 0 * rest],
    }[plan]
    broken = certified_any = 0
    for _ in range(DRAWS):
        certified = learn_then_test(sampled_risks(draw, rng, 4000, 800), order=order.tolist(), shares=shares)
        broken += (certified & breaks).any()
        certified_any += certified.any()
    assert broken <= MOST
    assert certified_any > 2 * MOST  # what certifies hardly ever could not break many promises either


def test_configurations_that_only_look_right_would_fail_here():
    """Of those that merely keep their limits on the sample, some breaks one in the population, in most samples."""
    rng = np.random.default_rng(5)
    breaks, broken = broken_limits(continuous, rng), 0
    for _ in range(DRAWS):
        risks = sampled_risks(continuous, rng, 1500, 400)
        broken += (np.all([risk.means <= risk.limit for risk in risks], axis=0) & breaks).any()
    assert broken > 4 * MOST


def test_bounded_losses():
    """Losses of 0, 1/3, 2/3 and 1 whose mean is just above the limit are certified in at most 5 % of samples."""
    rng = np.random.default_rng(6)
    chances = np.array([0.94, 0.03, 0.015, 0.015])
    limit = float(chances @ np.arange(4) / 3) - 1e-6
    broken = 0
    for _ in range(DRAWS):
        losses = rng.choice(4, size=800, p=chances) / 3
        broken += learn_then_test([Risk("burden", limit, losses.mean(keepdims=True), 800, is_binary=False)])[0]
    assert broken <= MOST
