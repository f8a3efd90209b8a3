"""A short soak of a real server: the books balance and nothing is left. The long one is `make soak`."""

import pytest

from benchmarks.soak.run import soak
from benchmarks.soak.server import Subject
from tests.serving.lab import LAB, MODEL

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

REQUESTS = 1500
# The planted probe's scores are about -4 on harmless prompts and 4 on harmful ones.
POLICY = """
name: soak
version: "1"
off_template: allow
rules:
  - {name: high, action: block, when: {harm: {above: 4.0}}}
  - {name: middling, action: steer, when: {harm: {above: 2.0}}}
  - {name: low, action: flag, when: {harm: {above: 0.0}}}
steering: {vector: refusal, strength: 0.5}
"""


def test_every_prompt_is_in_the_books_and_nothing_is_left(artifact, artifact_folder, tmp_path):
    """1,500 requests, every kind among them: scored + unscored = finished + given up + refused, and then all is as
    before.
    """
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    subject = Subject(MODEL, artifact_folder, policy, eager=True)
    found = soak(subject, REQUESTS, LAB / "prompts" / "train.jsonl", tmp_path, lambda *_: None)
    assert found.mixed.surprises == []
    assert {check.what: check.numbers for check in found.checks if not check.holds} == {}
    assert found.bulk["completed"] + found.mixed.sent.total() == REQUESTS
