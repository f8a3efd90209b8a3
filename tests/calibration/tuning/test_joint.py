"""Joint limits: what is chosen keeps them all in the population, and what cannot be kept is named."""

import numpy as np
import pytest
from scipy.stats import binom

from calibration.tuning.joint import Prompts, cut_grid, find_setting
from calibration.tuning.limits import KINDS, parse_limits
from calibration.tuning.tune import Sample, with_numbers
from guard.decide import bind, score_columns
from guard.policy_file import parse_policy
from probes.errors import CalibrationError, PolicyError

PROBES = ["harm", "refusal"]
POLICY = parse_policy("""\
name: p
version: "1"
steering: {}
combine: {both: {harm: 0.5, refusal: 0.5}}
rules:
  - {name: sure, action: block, when: {both: {above: {target_fpr: 0.001}}}}
  - {name: doubtful, action: steer, when: {both: {above: 0, below: {target_fpr: 0.5}}}}
""")
DRAWS = 300


def bound(policy):
    """The policy, ready to decide."""
    return bind(policy, PROBES, np.zeros((0, 2), np.float32), steering=["refusal"])


def drawn(rng, num_benign, num_harmful, *, gap=3.0, num_hard=0):
    """Scores of benign, harmful and hard benign prompts, the last in between; on halves, so that many tie."""
    sizes = {"benign": (num_benign, 0.0), "harmful": (num_harmful, gap), "hard": (num_hard, 1.0)}
    columns = {
        name: score_columns(POLICY, PROBES, (np.round(2 * rng.normal(shift, 1.0, (size, 2))) / 2).astype(np.float32))
        for name, (size, shift) in sizes.items()
    }
    return Prompts(Sample(columns["benign"]), columns["harmful"], columns["hard"] if num_hard else None)


def true_shares(plan, fresh, policy=POLICY):
    """What each kind of limit measures on prompts of every kind."""
    decided = bound(with_numbers(policy, {place: number.value for place, number in plan.items()}))
    groups = {"benign": fresh.benign.columns, "harmful": fresh.harmful, "hard": fresh.hard}
    severities = {name: decided.severities(columns) for name, columns in groups.items()}
    return {name: float(kind.loss(severities[kind.group]).mean()) for name, kind in KINDS.items()}


def test_the_chosen_setting_keeps_every_limit_in_the_population():
    """Over 300 samples, some limit is broken on 100,000 fresh prompts in at most 28 (99.9 % quantile at 5 %).

    With one kind of rule, for speed; settings of two kinds are simulated in tests/guard/test_promises.py.
    """
    rng = np.random.default_rng(0)
    reference, fresh = drawn(rng, 800, 300), drawn(rng, 100_000, 100_000, num_hard=100_000)
    limits = parse_limits(["flag=0.06", "burden=0.04", "miss=0.3", "hard=0.4"])
    steers = parse_policy(
        'name: p\nversion: "1"\nsteering: {}\ncombine: {both: {harm: 0.5, refusal: 0.5}}\n'
        "rules: [{name: r, action: steer, when: {both: {above: 0}}}]"
    )
    broken = certified = 0
    for _ in range(DRAWS):
        try:
            found = find_setting(steers, limits, drawn(rng, 1200, 400, num_hard=300), reference, 0.95, bound)
        except CalibrationError:
            continue
        certified += 1
        shares = true_shares(found.plan, fresh, steers)
        broken += any(shares[limit.kind] > limit.most for limit in limits)
    assert broken <= binom.ppf(0.999, DRAWS, 0.05)
    assert certified > 0.5 * DRAWS


def test_what_is_tested_is_what_is_written():
    """The measured shares are those of the policy with the plan's numbers, counted anew; the least missed is chosen."""
    rng = np.random.default_rng(1)
    reference, prompts = drawn(rng, 800, 300), drawn(rng, 2000, 500, num_hard=200)
    limits = parse_limits(["block=0.01", "flag=0.05", "unblocked=0.9"])
    found = find_setting(POLICY, limits, prompts, reference, 0.95, bound)
    counted = true_shares(found.plan, prompts)
    assert {risk.name: mean for risk, mean, _ in found.tested} == pytest.approx(
        {limit.kind: counted[limit.kind] for limit in limits}
    )
    assert 0 < found.num_certified <= found.num_settings
    assert all(p_value <= 0.05 for _, _, p_value in found.tested)
    assert all("block at most 1 %, flag at most 5 %, unblocked at most 90 %" in n.promise for n in found.plan.values())
    assert found.plan["doubtful", "both", "below"].value > found.plan["sure", "both", "above"].value


def test_a_limit_has_to_hold_in_every_stratum():
    """Long prompts score higher: with strata the threshold rises to where they keep the limit too; small ones are
    named.
    """
    rng = np.random.default_rng(2)
    reference = drawn(rng, 800, 300)
    plain, shifted, few = (drawn(rng, size, 300).benign.columns for size in (1500, 1500, 20))
    columns = {name: np.concatenate([plain[name], shifted[name] + 1.0, few[name]]) for name in plain}
    strata = np.repeat(["short", "long", "rare"], [1500, 1500, 20])
    harmful, limits = drawn(rng, 10, 300).harmful, parse_limits(["block=0.1"])
    pooled, parted = (
        find_setting(POLICY, limits, Prompts(Sample(columns, each), harmful), reference, 0.95, bound)
        for each in (None, strata)
    )
    place = ("sure", "both", "above")
    assert parted.plan[place].value > pooled.plan[place].value
    assert {risk.name for risk, _, _ in parted.tested} == {"block", "block in short", "block in long"}
    assert parted.too_small == {"rare": 20}


@pytest.mark.parametrize(
    ("texts", "sizes", "gap", "field", "words"),
    [
        (["block=0.001"], (1000, 200), 3.0, "block", "at least|about"),
        (["flag=0.01", "miss=0.05"], (3000, 1000), 1.0, "miss|flag", "allow more"),
        (["hard=0.1"], (1000, 200), 3.0, "hard", "--hard-benign"),
    ],
)
def test_what_cannot_be_kept_is_named(texts, sizes, gap, field, words):
    """Too small a sample, limits that exclude each other, and a group that is not there."""
    rng = np.random.default_rng(3)
    with pytest.raises(CalibrationError) as caught:
        find_setting(
            POLICY, parse_limits(texts), drawn(rng, *sizes, gap=gap), drawn(rng, 800, 300, gap=gap), 0.95, bound
        )
    assert caught.value.field in field.split("|")
    assert any(word in caught.value.remedy for word in words.split("|"))


@pytest.mark.parametrize("text", ["miss", "miss=", "miss=often", "mis=0.2", "miss=0", "miss=1", "miss=nan", "=0.1", ""])
def test_limits_that_are_none(text):
    """The remedy says how one is written, or what can be limited."""
    with pytest.raises(CalibrationError, match="is not a limit") as caught:
        parse_limits([text])
    assert caught.value.field == "--at-most"


def test_a_limit_given_twice_is_refused():
    """Which of the two is meant cannot be known."""
    with pytest.raises(CalibrationError, match="twice"):
        parse_limits(["miss=0.2", "miss=0.3"])


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("action: block, when: {harm: {below: 0}}", "no rule has an `above`"),
        ("action: flag, when: {harm: {above: 0, below: {target_fpr: 0.1}}}", "no rule blocks"),
    ],
)
def test_policies_that_leave_nothing_to_set(rule, words):
    """A rule that only asks to be below something; a band whose upper end is nowhere."""
    policy = parse_policy(f'name: p\nversion: "1"\nrules: [{{name: r, {rule}}}]')
    rng = np.random.default_rng(4)
    with pytest.raises(PolicyError, match=words):
        find_setting(policy, parse_limits(["block=0.1"]), drawn(rng, 100, 50), drawn(rng, 100, 50), 0.95, bound)


def test_the_grid_of_cuts_reaches_beyond_what_was_seen():
    """It ascends, begins where half lies above, and ends above the highest score; a constant score is no trouble."""
    scores = np.random.default_rng(5).normal(size=1000)
    grid = cut_grid(scores)
    assert (np.diff(grid) >= 0).all()
    assert (scores > grid[0]).mean() == pytest.approx(0.5, abs=0.002)
    assert (grid > scores.max()).sum() == 2
    assert np.isfinite(cut_grid(np.zeros(10))).all()
