"""Tuning changes a policy's thresholds, says what they promise, and touches nothing else."""

import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.tuning.outcome import outcomes
from calibration.tuning.policy_edit import comments_of, policy_diff
from calibration.tuning.tune import (
    Sample,
    band_plan,
    certify_bands,
    stated_plan,
    tune_bands,
    tune_scores,
    with_numbers,
    written,
)
from guard.decide import bind, score_columns
from guard.policy_file import parse_policy
from guard.threshold import certify
from probes.errors import PolicyError, TooFewNegatives

PROBES = ["stack", "refusal"]

POLICY = """\
# keep this comment
name: demo
version: "1"
combine:
  both: {stack: 0.5, refusal: 0.5}
rules:
  - name: block-harm
    action: block
    when:
      stack:
        above:
          target_fpr: 0.02   # promise
          confidence: 0.9
      refusal: {below: 3.5}
  - {name: numbers, action: flag, when: {refusal: {above: -4.25, below: 99}}}
  - name: combined
    action: flag   # and this one
    when:
      both: {above: {target_fpr: 0.05}}
"""


@pytest.fixture
def scores():
    """Scores of 1,000 prompts by two probes."""
    return np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)


def tuned_diff(text, scores, *, strata=None, harmful=None, target=0.01, confidence=0.95):
    """The diff that tuning `text` on benign `scores` gives, with its comments."""
    policy = parse_policy(text)
    benign = Sample(score_columns(policy, PROBES, scores), strata)
    plan = stated_plan(policy, benign, target, confidence)
    bound = bound_at(policy, plan)
    groups = {"benign": benign.columns} | (
        {} if harmful is None else {"harmful": score_columns(policy, PROBES, harmful)}
    )
    return policy_diff(text, "p.yaml", policy, plan, comments_of(plan, outcomes(bound, groups)))


def bound_at(policy, plan):
    """The policy with the plan's numbers, ready to decide."""
    tuned = with_numbers(policy, {place: number.value for place, number in plan.items()})
    return bind(tuned, PROBES, np.zeros((0, 2), np.float32), steering=["refusal"])


def patched(diff, text, folder):
    """Return `text` after the real `patch` has applied the diff."""
    (folder / "p.yaml").write_bytes(text.encode())
    done = subprocess.run(
        ["patch", "--binary", "p.yaml"], input=diff.encode(), cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "p.yaml").read_bytes().decode()


def apply(diff, text):
    """Return `text` with the unified diff applied."""
    result, source, position = [], text.splitlines(keepends=True), 0
    for line in diff.splitlines(keepends=True)[2:]:
        if line.startswith("@@"):
            start = int(line.split()[1].split(",")[0][1:]) - 1
            result += source[position:start]
            position = start
        elif line.startswith("-"):
            position += 1
        elif line.startswith("+"):
            result.append(line[1:])
        else:
            result.append(line[1:])
            position += 1
    return "".join(result + source[position:])


def test_every_upper_threshold_becomes_a_certified_number(scores):
    """Conditions keep the target they state, numbers take the target given, and nothing else of the file changes."""
    diff = tuned_diff(POLICY, scores)
    tuned_text = apply(diff, POLICY)
    tuned = parse_policy(tuned_text)
    expected = [
        certify(scores[:, 0], 0.02, 0.9).value,
        certify(scores[:, 1], 0.01).value,
        certify(scores.mean(axis=1), 0.05).value,
    ]
    found = [tuned.rules[0].when["stack"], tuned.rules[1].when["refusal"], tuned.rules[2].when["both"]]
    for condition, value in zip(found, expected, strict=True):
        assert value <= condition.above < value + 2e-4
    assert (tuned.rules[0].when["refusal"].below, tuned.rules[1].when["refusal"].below) == (3.5, 99)
    assert "# keep this comment" in tuned_text
    assert "# and this one" in tuned_text
    assert diff.startswith("--- p.yaml\n+++ p.yaml")


def test_a_tuned_policy_needs_no_change(scores):
    """Tuning twice on the same prompts gives an empty diff."""
    text = (
        POLICY.replace("target_fpr: 0.05", "target_fpr: 0.01")
        .replace("0.02", "0.01")
        .replace("confidence: 0.9", "confidence: 0.95")
    )
    once = apply(tuned_diff(text, scores), text)
    assert once.count("# tuned: ") == 6
    assert tuned_diff(once, scores) == ""


def test_expected_recall_is_counted_on_the_harmful_scores(scores):
    """Each score's recall is the share of harmful scores above its threshold, with its interval."""
    policy = parse_policy(POLICY)
    benign, harmful = (score_columns(policy, PROBES, shifted) for shifted in (scores, scores + 2))
    for item in tune_scores(Sample(benign), harmful, 0.01, 0.95):
        assert item.recall.value == (harmful[item.name] > item.threshold.value).mean()
        assert item.recall.low < item.recall.value < item.recall.high


def test_too_few_benign_prompts_are_refused(scores):
    """The error says how many are needed; a probe that is not there is named."""
    policy = parse_policy(POLICY)
    few = score_columns(policy, PROBES, scores[:100])
    with pytest.raises(TooFewNegatives, match="at least 299"):
        tune_scores(Sample(few), few, 0.01, 0.95)
    with pytest.raises(PolicyError, match="no probe is named 'stack'"):
        score_columns(policy, ["refusal"], scores[:, :1])


def test_with_strata_the_strictest_one_decides(scores):
    """The number in the diff is the highest of the strata's own cuts."""
    strata = np.repeat(["short", "long"], 500)
    shifted = scores + np.where(strata == "long", 2.0, 0.0)[:, None].astype(np.float32)
    policy = parse_policy(POLICY)
    benign = Sample(score_columns(policy, PROBES, shifted), strata)
    [stack] = [item for item in tune_scores(benign, benign.columns, 0.02, 0.9) if item.name == "stack"]
    assert stack.threshold.value == stack.certified.strata["long"].value > stack.certified.strata["short"].value
    assert stack.certified.strata["long"] == certify(shifted[500:, 0], 0.02, 0.95)
    tuned = parse_policy(apply(tuned_diff(POLICY, shifted, strata=strata, target=0.02, confidence=0.9), POLICY))
    assert tuned.rules[0].when["stack"].above == pytest.approx(stack.threshold.value, abs=1e-4)


def test_each_change_says_what_it_promises_and_does(scores):
    """Above each threshold: the promise, and on what share of each group the rule as a whole fires, counted
    independently.
    """
    policy = parse_policy(POLICY)
    tuned_text = apply(tuned_diff(POLICY, scores, harmful=scores + 2), POLICY)
    lines = tuned_text.splitlines()
    index = next(index for index, line in enumerate(lines) if line.strip().startswith("above:"))
    promise, fires = (line.strip() for line in lines[index - 2 : index])
    assert promise.startswith("# tuned: at most 2 % of benign requests have stack above this, with 90 % confidence (")
    both = score_columns(policy, PROBES, scores)
    cut = float(lines[index].split()[1])
    fired = int(((both["stack"] > cut) & (both["refusal"] < 3.5)).sum())
    assert fires.startswith(f"# tuned: block-harm fires on {100 * fired / 1000:.2g} % (")
    assert "of benign, " in fires
    assert fires.endswith("of harmful")


def test_the_real_patch_applies_it(scores, tmp_path):
    """Also with Windows line ends, without one at the end, and with characters that only Python takes for line ends."""
    odd = POLICY.replace("name: demo", 'name: demo\nresponse: {message: "a\\u2028b \u2028 c"}')
    for number, text in enumerate((POLICY, POLICY.rstrip("\n"), POLICY.replace("\n", "\r\n"), odd)):
        folder = tmp_path / str(number)
        folder.mkdir()
        tuned = parse_policy(patched(tuned_diff(text, scores), text, folder))
        assert tuned == parse_policy(apply(tuned_diff(POLICY, scores), POLICY)).model_copy(
            update={"response": tuned.response}
        )


def test_new_comments_replace_old_ones_and_no_others(scores):
    """Tuned again on other prompts, the file has as many comments as before, and the operator's own stay."""
    mine = POLICY.replace("  - {name: numbers", "  # mine\n  - {name: numbers")
    once = apply(tuned_diff(mine, scores), mine)
    twice = apply(tuned_diff(once, scores[:700] + 1), once)
    assert twice.count("# tuned: ") == once.count("# tuned: ") == 6
    assert "of 700 had)" in twice
    assert "of 1000 had)" not in twice
    assert "  # mine\n  # tuned: " in twice


def test_a_threshold_that_passes_the_other_end_of_its_condition_is_refused(scores):
    """The certified number is not below the `below` that the operator wrote: the diff would be a policy that never
    fires.
    """
    text = POLICY.replace("{above: -4.25, below: 99}", "{above: -4.25, below: 0}")
    with pytest.raises(PolicyError, match="no score is above"):
        tuned_diff(text, scores)


def test_a_layout_that_cannot_be_edited_is_refused(scores):
    """One condition shared by an alias cannot hold two numbers."""
    text = (
        'name: a\nversion: "1"\nrules:\n  - {name: r, action: flag, when: {stack: &c {above: {target_fpr: 0.02}}}}\n'
        "  - {name: s, action: block, when: {refusal: *c}}\n"
    )
    with pytest.raises(PolicyError, match="cannot be edited"):
        tuned_diff(text, scores)


@given(st.floats(-1e6, 1e6))
def test_written_thresholds_are_never_lower(cut):
    """And by less than the last digit higher; for `below`, higher than the cut itself."""
    assert cut <= float(written(cut)) <= cut + 1.001e-4
    assert cut < float(written(cut, below=True)) <= cut + 2.001e-4


BAND = """\
name: band
version: "1"
steering: {}
rules:
  - name: sure
    action: block
    when:
      stack: {above: {target_fpr: 0.3}}
  - name: doubtful
    action: steer
    when:
      stack:
        above: 0
        below: {target_fpr: 0.1}
"""


def test_a_band_gets_both_ends_and_leaves_no_gap(scores):
    """Blocks begin at the upper cut and the band ends there, whatever was stated; what ties with the cut is in the
    band.
    """
    policy = parse_policy(BAND)
    tied = np.round(scores, 1)
    benign = Sample(score_columns(policy, PROBES, tied))
    bands = certify_bands(policy, benign, 0.01, 0.05, 0.95)
    assert bands["stack"].block.threshold == certify(tied[:, 0], 0.01, 0.975)
    assert bands["stack"].flag.threshold == certify(tied[:, 0], 0.05, 0.975)
    plan = band_plan(policy, bands, benign, 0.95)
    bound = bound_at(policy, plan)
    severities, flag = bound.severities(benign.columns), bands["stack"].flag.threshold.value
    assert ((severities > 0) == (benign.columns["stack"] > flag)).all()
    assert (severities == 3).sum() <= bands["stack"].block.threshold.allowed_exceedances
    assert (severities == 2).any()
    diff = policy_diff(BAND, "p", policy, plan, comments_of(plan, outcomes(bound, {"benign": benign.columns})))
    assert parse_policy(apply(diff, BAND)).rules[1].when["stack"].below > bands["stack"].block.threshold.value
    cuts = tune_bands(bands, benign.columns)
    assert [(item.name, item.action) for item in cuts] == [("stack", "flag"), ("stack", "block")]


def test_two_scores_share_the_confidence(scores):
    """Bands on two scores hold together: each end is certified at 98.75 %."""
    text = BAND.replace(
        "      stack:\n        above: 0\n        below: {target_fpr: 0.1}\n", "      refusal: {above: 0}\n"
    )
    policy = parse_policy(text)
    bands = certify_bands(policy, Sample(score_columns(policy, PROBES, scores)), 0.01, 0.05, 0.95)
    assert bands["refusal"].flag.threshold == certify(scores[:, 1], 0.05, 1 - 0.05 / 4)


@pytest.mark.parametrize(("kept", "missing"), [("sure", "flag"), ("doubtful", "block")])
def test_a_band_needs_rules_at_both_ends(scores, kept, missing):
    """The remedy is a rule to paste."""
    policy = parse_policy(BAND)
    policy = policy.model_copy(update={"rules": tuple(rule for rule in policy.rules if rule.name == kept)})
    with pytest.raises(PolicyError, match=f"no rule of the policy would {missing}") as caught:
        certify_bands(policy, Sample(score_columns(policy, PROBES, scores)), 0.01, 0.05, 0.95)
    pasted = BAND + "  " + caught.value.remedy.removeprefix("add one: ") + "\n"
    assert parse_policy(pasted).rules[-1].action == missing


def test_a_promise_names_the_strata_that_it_is_for(scores):
    """And those that are too few; a source whose name would end the comment's line does not."""
    strata = np.repeat(["web\nrules: []", "app", "new\u2028er\x07"], [600, 380, 20])
    tuned_text = apply(tuned_diff(POLICY, scores, strata=strata, target=0.05), POLICY)
    assert (
        "5 % of benign requests in each of web rules: []; app (nothing is promised of new er) have both above"
        in tuned_text
    )
    assert len(parse_policy(tuned_text).rules) == 3
