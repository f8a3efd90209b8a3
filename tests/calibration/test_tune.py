"""Tuning changes a policy's thresholds, says what they promise, and touches nothing else."""

import numpy as np
import pytest

from calibration.tune import Sample, columns_of, policy_diff, tune_scores
from guard.policy_file import parse_policy
from guard.threshold import certify
from probes.errors import PolicyError, TooFewNegatives

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
    policy = parse_policy(POLICY)
    benign = columns_of(["stack", "refusal"], scores, policy)
    diff = policy_diff(POLICY, "p.yaml", policy, Sample(benign), 0.01, 0.95)
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
    policy = parse_policy(POLICY.replace("target_fpr: 0.05", "target_fpr: 0.01"))
    text = (
        POLICY.replace("target_fpr: 0.05", "target_fpr: 0.01")
        .replace("0.02", "0.01")
        .replace("confidence: 0.9", "confidence: 0.95")
    )
    benign = columns_of(["stack", "refusal"], scores, policy)
    once = apply(policy_diff(text, "p", parse_policy(text), Sample(benign), 0.01, 0.95), text)
    assert policy_diff(once, "p", parse_policy(once), Sample(benign), 0.01, 0.95) == ""


def test_expected_recall_is_counted_on_the_harmful_scores(scores):
    """Each score's recall is the share of harmful scores above its threshold, with its interval."""
    policy = parse_policy(POLICY)
    benign, harmful = (columns_of(["stack", "refusal"], shifted, policy) for shifted in (scores, scores + 2))
    for item in tune_scores(Sample(benign), harmful, 0.01, 0.95):
        assert item.recall.value == (harmful[item.name] > item.threshold.value).mean()
        assert item.recall.low < item.recall.value < item.recall.high


def test_too_few_benign_prompts_are_refused(scores):
    """The error says how many are needed; a probe that is not there is named."""
    policy = parse_policy(POLICY)
    few = columns_of(["stack", "refusal"], scores[:100], policy)
    with pytest.raises(TooFewNegatives, match="at least 299"):
        tune_scores(Sample(few), few, 0.01, 0.95)
    with pytest.raises(PolicyError, match="no probe or combination is named 'stack'"):
        columns_of(["refusal"], scores[:, :1], policy)


def test_with_strata_the_strictest_one_decides(scores):
    """The number in the diff is the highest of the strata's own cuts."""
    strata = np.repeat(["short", "long"], 500)
    shifted = scores + np.where(strata == "long", 2.0, 0.0)[:, None].astype(np.float32)
    policy = parse_policy(POLICY)
    benign = Sample(columns_of(["stack", "refusal"], shifted, policy), strata)
    [stack] = [item for item in tune_scores(benign, benign.columns, 0.02, 0.9) if item.name == "stack"]
    assert stack.threshold.value == stack.certified.strata["long"].value > stack.certified.strata["short"].value
    assert stack.certified.strata["long"] == certify(shifted[500:, 0], 0.02, 0.95)
    tuned = parse_policy(apply(policy_diff(POLICY, "p", policy, benign, 0.02, 0.9), POLICY))
    assert tuned.rules[0].when["stack"].above == pytest.approx(stack.threshold.value, abs=1e-4)
