"""Made-up decisions, for the tests of the sink."""

import numpy as np

from guard.drift.reference import references
from guard.drift.settings import DriftSettings
from guard.drift.sink import DriftSink
from guard.journal import Decision
from guard.policy import Policy
from guard.verdict import Action, Mode, Verdict

PROBES = ("harm", "refusal")
POLICY = Policy.model_validate(
    {"name": "p", "version": "1", "rules": [{"name": "r", "action": "flag", "when": {"harm": {"above": 2}}}]}
)
SETTINGS = DriftSettings(run_length=100_000.0, window=500, baseline=500, most_strata=4)


def sink(settings=SETTINGS):
    """A sink for two probes whose benign scores are standard normal, always with the same references."""
    return DriftSink({"": references(PROBES, np.random.default_rng(0).normal(size=(1000, 2)))}, settings)


def decision(harm=0.0, refusal=0.0, *, unscored=None, **about):
    """A decision on a prompt with these scores, flagged if `harm` is above 2."""
    action = Action.FLAG if harm > 2 else Action.ALLOW
    scores = {} if unscored else {"harm": float(harm), "refusal": float(refusal)}
    verdict = Verdict(action, action, Mode.SHADOW, scores, "p@1", "event", unscored=unscored)
    return Decision(verdict, POLICY, **about)


def quiet(rng, count, tenants=("a", "b", "c")):
    """As many decisions on benign prompts, of tenants in turn, on two routes."""
    return [decision(*rng.normal(size=2), tenant=tenants[at % len(tenants)], route=f"r{at % 2}") for at in range(count)]
