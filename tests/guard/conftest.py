"""Policies and benign scores for every test of the brain."""

import numpy as np
import pytest

from guard.policy import Policy

PROBES = ("harm", "refusal")


@pytest.fixture
def benign():
    """1,000 benign prompts' scores `[N, K]`: column 0 is 0..999 in some order, column 1 its opposite."""
    column = np.random.default_rng(0).permutation(1000).astype(np.float32)
    return np.stack([column, 999 - column], axis=1)


@pytest.fixture
def policy():
    """A maker of policies: rules as (name, action, conditions), and any other keys."""

    def make(*rules, **keys):
        written = [{"name": name, "action": action, "when": when} for name, action, when in rules]
        if any(action == "steer" for _, action, _ in rules):
            keys.setdefault("steering", {"vector": "refusal"})
        return Policy.model_validate({"name": "test", "version": "1", "rules": written, **keys})

    return make
