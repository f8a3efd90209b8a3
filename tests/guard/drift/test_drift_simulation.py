"""The simulation that an operator may run keeps the promises that it prints."""

import math

from scipy.stats import binom, poisson

from guard.drift.simulation import SETTINGS, changed, delays, false_alarms, shifted


def test_false_alarms_are_within_what_is_promised():
    """100 runs with the allowance spent far above: at most 2 % of them, and one alarm in 5,000 requests."""
    seen = false_alarms(changed(SETTINGS.allowance, 20.0), runs=100, requests=2000, run_length=5000, seed=1)
    assert seen.e_process <= binom.ppf(0.999, 100, 0.02)
    most = poisson.ppf(0.999, seen.runs * seen.requests / 5000)
    assert seen.detector <= most
    assert seen.cusum <= most


def test_a_large_shift_shows_soon_also_after_a_quiet_time():
    """One standard deviation: within 200 requests in each of five runs, by the e-detector, late as it is."""
    found = delays(shifted(1.0), runs=5, run_length=1e6, seed=2)
    assert max(found["e-detector, late"]) < 200
    assert max(found["e-process, new"]) < 200
    assert all(math.isinf(each) or each > 1000 for each in found["e-process, late"])
