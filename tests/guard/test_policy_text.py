"""Edits of a policy file's text change what they are asked to, and leave every other letter."""

import pytest

from guard.policy_file import parse_policies
from guard.policy_text import with_canary, with_threshold
from probes.errors import PolicyError

TEXT = """\
# Ours.
name: p
version: "1"
rules:
  - {name: one, action: block, when: {harm: {above: 2.0, below: 9}}}   # clear
  - name: two
    action: flag
    when:
      harm:
        above:
          target_fpr: 0.01
      other: {above: 1}
variants:
  # on its way
  enforcing: {mode: enforce}
"""


@pytest.mark.parametrize(
    ("rule", "score", "old", "new"),
    [
        ("one", "harm", "above: 2.0,", "above: 2.75,"),
        ("two", "harm", "above:\n          target_fpr: 0.01\n", "above: 2.75\n"),
        ("two", "other", "{above: 1}", "{above: 2.75}"),
    ],
)
def test_one_number_changes(rule, score, old, new):
    """In flow and in block style, a number or a promise; comments and everything else stay."""
    assert old in TEXT
    assert with_threshold(TEXT, rule, score, 2.75) == TEXT.replace(old, new)


@pytest.mark.parametrize(("rule", "score"), [("three", "harm"), ("one", "other")])
def test_a_condition_that_is_not_there_is_named(rule, score):
    """With the field."""
    with pytest.raises(PolicyError, match=f"rules.{rule}.when.{score}"):
        with_threshold(TEXT, rule, score, 1.0)


def test_a_threshold_that_contradicts_the_rule_is_refused():
    """No score is above 9.5 and below 9."""
    with pytest.raises((PolicyError, ValueError)):
        with_threshold(TEXT, "one", "harm", 9.5)


def test_an_anchor_is_not_edited():
    """What stands for two conditions at once would change both."""
    shared = TEXT.replace("{above: 1}", "&x {above: 1}").replace("harm: {above: 2.0, below: 9}", "harm: *x")
    with pytest.raises(PolicyError):
        with_threshold(shared, "one", "harm", 2.0)


def test_a_canary_comes_changes_and_goes():
    """One line of its own, at the end; with 0 the file is as it was, but for an empty line."""
    five = with_canary(TEXT, "enforcing", 5.0)
    assert five == TEXT + "canary: {variant: enforcing, percent: 5.0}\n"
    fifty = with_canary(five, "enforcing", 50.0)
    assert parse_policies(fifty).settings.canary.percent == 50.0
    assert with_canary(fifty, "enforcing", 0).strip() == TEXT.strip()
    assert with_canary(TEXT, "enforcing", 0) == TEXT


def test_a_canary_for_no_variant_is_refused():
    """With the variant's name."""
    with pytest.raises(PolicyError, match="nobody"):
        with_canary(TEXT, "nobody", 5.0)
