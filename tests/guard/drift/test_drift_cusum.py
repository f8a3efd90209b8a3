"""CUSUM's run length is what was asked for, computed exactly and met in simulation."""

import numpy as np
import pytest

from guard.drift.cusum import Cusum, Design, run_lengths
from probes.errors import CalibrationError

RUNS = 400


def simulated(design, rate, seed, most):
    """Requests to the alarm in each of 400 runs, all at once."""
    rng, level = np.random.default_rng(seed), np.zeros(RUNS, dtype=int)
    at = np.zeros(RUNS, dtype=int)
    for step in range(1, most):
        event = rng.random(RUNS) < rate
        level = np.maximum(level + np.where(event, design.steps - 1, -1), 0)
        at[(at == 0) & (level >= design.limit)] = step
        if at.all():
            return at
    raise AssertionError("a run did not end")


@pytest.mark.parametrize(("usual", "shifted", "wanted"), [(0.02, 0.04, 2000), (0.1, 0.3, 500), (0.3, 0.6, 300)])
def test_simulated_run_lengths_are_the_computed_ones(usual, shifted, wanted):
    """In control and out of it, up to four standard errors of 400 runs."""
    design = Design.of(usual, shifted, wanted)
    for rate in (usual, shifted):
        at = simulated(design, rate, 1, 60 * wanted)
        assert at.mean() == pytest.approx(design.delay(rate), abs=4 * at.std() / np.sqrt(RUNS))


@pytest.mark.parametrize(
    ("rate", "steps", "limit"),
    [(rate, steps, limit) for rate in (0.2, 0.4) for steps in (2, 3, 9) for limit in (1, 2, 7, 8, 9, 13)]
    + [(0.07, 9, limit) for limit in (40, 41, 49)],
)
def test_the_computed_run_length_is_that_of_the_whole_chain(rate, steps, limit):
    """It is what a dense transition matrix gives, built state by state, whatever is left of the last block."""
    moves = np.zeros((limit, limit))
    for state in range(limit):
        moves[state, max(state - 1, 0)] += 1 - rate
        if state + steps - 1 < limit:
            moves[state, state + steps - 1] += rate
    dense = np.linalg.solve(np.eye(limit) - moves, np.ones(limit))
    assert run_lengths(rate, steps, limit) == pytest.approx(dense)


@pytest.mark.parametrize("wanted", [100, 10_000, 1_000_000])
def test_the_limit_is_the_least_that_keeps_the_run_length(wanted):
    """It is kept, and one step less would break it."""
    design = Design.of(0.02, 0.04, wanted)
    assert design.run_length >= wanted
    assert run_lengths(0.02, design.steps, design.limit - 1)[0] < wanted


def test_a_lower_rate_runs_longer_and_a_higher_one_is_seen():
    """The promise holds below the usual rate; twice the rate is found a thousand times sooner."""
    design = Design.of(0.02, 0.04, 1_000_000)
    assert design.delay(0.015) > design.run_length
    assert design.delay(0.04) < design.run_length / 500


def test_one_cusum_counts_as_the_chain_does():
    """Events and requests, the level, and the place of the first alarm, which stands."""
    cusum = Cusum(Design(0.02, 0.04, steps=5, limit=8, run_length=0))
    levels = []
    for event in (0, 1, 0, 1, 1, 0, 1):
        cusum.add(bool(event))
        levels.append(cusum.level)
    assert levels == [0, 4, 3, 7, 8, 7, 8]
    assert (cusum.alarm_at, cusum.count, cusum.events) == (5, 7, 4)


@pytest.mark.parametrize(("usual", "shifted"), [(0.0, 0.1), (0.2, 0.1), (0.5, 1.0)])
def test_rates_that_are_none_are_refused(usual, shifted):
    """With what to give instead."""
    with pytest.raises(CalibrationError, match="higher one"):
        Design.of(usual, shifted, 1000)


def test_a_chain_that_would_not_fit_is_refused():
    """A rise of a thousandth over one in a million. One in 100,000 that doubles does fit."""
    assert Design.of(1e-5, 2e-5, 1e6).run_length >= 1e6
    with pytest.raises(CalibrationError, match="larger shift"):
        Design.of(1e-6, 1.001e-6, 1e8)
    with pytest.raises(CalibrationError, match="run_length"):
        Design.of(0.02, 0.04, 1e12)
