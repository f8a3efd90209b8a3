"""Readouts agree with their formulas, written out naively."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from probes.readout import Readout

POOLED = [Readout(kind="mean"), Readout(kind="max"), Readout(kind="ema"), Readout(kind="swim")]
token_scores = arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32))


def close(value, reference):
    """Whether two scores agree to the rounding of float64 arithmetic on float32 input."""
    return value == pytest.approx(reference, rel=1e-9, abs=1e-9)


@given(scores=token_scores)
def test_mean_and_max_are_what_their_names_say(scores):
    """The mean is summed exactly, not in float32; the maximum is one of the scores."""
    assert close(Readout(kind="mean").reduce(scores), math.fsum(scores.tolist()) / len(scores))
    assert Readout(kind="max").reduce(scores) == max(scores.tolist())


@given(scores=token_scores, alpha=st.floats(0.01, 1.0))
def test_ema_is_the_peak_of_the_moving_average(scores, alpha):
    """Each level is `alpha * score + (1 - alpha) * level before`, starting at the first score."""
    levels = [float(scores[0])]
    for score in scores[1:].tolist():
        levels.append(alpha * score + (1 - alpha) * levels[-1])
    assert close(Readout(kind="ema", alpha=alpha).reduce(scores), max(levels))


@given(scores=token_scores, window=st.integers(1, 60))
def test_swim_is_the_best_window(scores, window):
    """The largest mean of `window` neighbours; a prompt shorter than the window is one window."""
    width = min(window, len(scores))
    means = [math.fsum(scores[i : i + width].tolist()) / width for i in range(len(scores) - width + 1)]
    assert close(Readout(kind="swim", window=window).reduce(scores), max(means))


@given(scores=token_scores)
def test_limits_meet(scores):
    """A window of one and an average without memory are the maximum; a window of everything is the mean."""
    peak = Readout(kind="max").reduce(scores)
    assert close(Readout(kind="swim", window=1).reduce(scores), peak)
    assert close(Readout(kind="ema", alpha=1.0).reduce(scores), peak)
    assert close(Readout(kind="swim", window=len(scores)).reduce(scores), Readout(kind="mean").reduce(scores))


def test_planted_spike():
    """Two hot tokens among eight: each readout gives the number worked out by hand."""
    scores = np.array([0, 0, 0, 4, 4, 0, 0, 0], dtype=np.float32)
    assert Readout(kind="last").reduce(scores) == 0
    assert Readout(kind="mean").reduce(scores) == 1
    assert Readout(kind="max").reduce(scores) == 4
    assert Readout(kind="ema", alpha=0.5).reduce(scores) == 3
    assert Readout(kind="swim", window=4).reduce(scores) == 2


@given(num_tokens=st.integers(1, 500), offset=st.integers(0, 600))
def test_last_needs_one_token(num_tokens, offset):
    """`last` reads the token `offset` before the last; a raw prompt shorter than the offset is read at its first token."""
    positions = Readout(kind="last", offset=offset).positions(num_tokens)
    assert list(positions) == [max(0, num_tokens - 1 - offset)]


@pytest.mark.parametrize("readout", POOLED, ids=lambda readout: readout.kind)
def test_pooled_readouts_need_every_token(readout):
    """All positions, in order."""
    assert list(readout.positions(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("readout", POOLED, ids=lambda readout: readout.kind)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_token_without_a_score_leaves_the_prompt_without_one(readout, place):
    """NaN marks a token that was never scored: no readout that needs the token may answer with a number."""
    scores = np.arange(7, dtype=np.float32)[::-1].copy()
    scores[place] = np.nan
    assert math.isnan(readout.reduce(scores))


@given(scores=token_scores, readout=st.sampled_from(POOLED))
def test_readouts_leave_their_input_alone(scores, readout):
    """Reducing is pure: several probes' readouts share one array."""
    before = scores.copy()
    readout.reduce(scores)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "median"},
        {"kind": "last", "offset": -1},
        {"kind": "mean", "offset": 1},
        {"kind": "ema", "alpha": 0.0},
        {"kind": "ema", "alpha": 1.5},
        {"kind": "ema", "alpha": math.nan},
        {"kind": "swim", "window": 0},
        {"kind": "max", "stride": 2},
    ],
)
def test_readouts_that_mean_nothing_are_refused(fields):
    """Unknown kinds and keys, and numbers outside their range, do not pass validation."""
    with pytest.raises(ValidationError):
        Readout(**fields)
