"""What each verdict should be: the policy applied to scores from a plain forward pass, outside the server.

Served and offline scores differ by rounding; where that alone could decide, either action is right.
"""

import json
from pathlib import Path

from guard.decide import BoundPolicy
from guard.verdict import Action

TOLERANCE = 0.15
"""The served tests' bound on |served - offline|, in log-odds (tests/serving/test_invariants.py)."""


def expected_actions(policy: BoundPolicy, scores: Path) -> dict[str, set[Action]]:
    """Return the actions that are right for each prompt, by id, from the file that `foreguard evaluate --scores`
    wrote.
    """
    lines = (json.loads(line) for line in scores.read_text().splitlines())
    return {line["id"]: _actions(policy, [line["scores"][probe] for probe in policy.probes]) for line in lines}


def _actions(policy: BoundPolicy, scores: list[float]) -> set[Action]:
    shifts = (-TOLERANCE, 0.0, TOLERANCE)
    return {policy.judge([score + shift for score in scores]).decision for shift in shifts}
