"""Readouts agree with their formulas, written out naively."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from probes.pooling import POOLINGS, WeightedMean
from probes.readout import Readout
from probes.template import whole

PER_CHANNEL = [Readout(kind=kind) for kind in ("mean", "max", "ema", "swim", "softmax")]
POOLED = [*PER_CHANNEL, Readout(kind="attention")]
token_scores = arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32))


def close(value, reference):
    """Whether two scores agree to the rounding of float64 arithmetic on float32 input."""
    return value == pytest.approx(reference, rel=1e-9, abs=1e-9)


def reduce(readout, scores):
    """The value of a single channel's scores `[T]`."""
    [value] = readout.reduce(scores[:, None])
    return float(value)


def several(channels):
    """Scores of `channels` channels."""
    shapes = st.tuples(st.integers(1, 12), st.just(channels))
    return arrays(np.float32, shapes, elements=st.floats(-50, 50, width=32))


def naive_weighted(logits, values):
    """The softmax-weighted mean, term by term."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


@given(scores=token_scores)
def test_mean_and_max_are_what_their_names_say(scores):
    """The mean is summed exactly, not in float32; the maximum is one of the scores."""
    assert close(reduce(Readout(kind="mean"), scores), math.fsum(scores.tolist()) / len(scores))
    assert reduce(Readout(kind="max"), scores) == max(scores.tolist())


@given(scores=token_scores, alpha=st.floats(0.01, 1.0))
def test_ema_is_the_peak_of_the_moving_average(scores, alpha):
    """Each level is `alpha * score + (1 - alpha) * level before`, starting at the first score."""
    levels = [float(scores[0])]
    for score in scores[1:].tolist():
        levels.append(alpha * score + (1 - alpha) * levels[-1])
    assert close(reduce(Readout(kind="ema", alpha=alpha), scores), max(levels))


@given(scores=token_scores, window=st.integers(1, 60))
def test_swim_is_the_best_window(scores, window):
    """The largest mean of `window` neighbours; a prompt shorter than the window is one window."""
    width = min(window, len(scores))
    means = [math.fsum(scores[i : i + width].tolist()) / width for i in range(len(scores) - width + 1)]
    assert close(reduce(Readout(kind="swim", window=window), scores), max(means))


@given(scores=token_scores)
def test_limits_meet(scores):
    """A window of one and an average without memory are the maximum; a window of everything is the mean."""
    peak = reduce(Readout(kind="max"), scores)
    assert close(reduce(Readout(kind="swim", window=1), scores), peak)
    assert close(reduce(Readout(kind="ema", alpha=1.0), scores), peak)
    assert close(reduce(Readout(kind="swim", window=len(scores)), scores), reduce(Readout(kind="mean"), scores))


def test_planted_spike():
    """Two hot tokens among eight: each readout gives the number worked out by hand."""
    scores = np.array([0, 0, 0, 4, 4, 0, 0, 0], dtype=np.float32)
    assert reduce(Readout(kind="last"), scores) == 0
    assert reduce(Readout(kind="mean"), scores) == 1
    assert reduce(Readout(kind="max"), scores) == 4
    assert reduce(Readout(kind="ema", alpha=0.5), scores) == 3
    assert reduce(Readout(kind="swim", window=4), scores) == 2


@given(scores=token_scores, temperature=st.floats(0.05, 50))
def test_softmax_weighs_tokens_by_their_own_score(scores, temperature):
    """`sum_t softmax(s / temperature)_t s_t`."""
    expected = naive_weighted([float(s) / temperature for s in scores], scores.tolist())
    found = reduce(Readout(kind="softmax", temperature=temperature), scores)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-7)


@given(scores=token_scores)
def test_softmax_lies_between_mean_and_max(scores):
    """Hot it is the mean, cold the maximum."""
    peak, mean = reduce(Readout(kind="max"), scores), reduce(Readout(kind="mean"), scores)
    hot = reduce(Readout(kind="softmax", temperature=1e9), scores)
    cold = reduce(Readout(kind="softmax", temperature=1e-9), scores)
    assert hot == pytest.approx(mean, abs=1e-4)
    assert cold == pytest.approx(peak, abs=1e-6)


@given(scores=several(6))
def test_attention_weighs_a_head_s_values_by_its_logits(scores):
    """Channels 0, 2, 4 are the logits of three heads, 1, 3, 5 their values; each head gives one number."""
    exact = scores.astype(float)
    expected = [naive_weighted(exact[:, 2 * head], exact[:, 2 * head + 1]) for head in range(3)]
    np.testing.assert_allclose(Readout(kind="attention").reduce(scores), expected, rtol=1e-9, atol=1e-7)


def test_planted_attention():
    """A head that looks at the third token alone reads that token's value."""
    scores = np.array([[0, 5], [0, 6], [40, -7], [0, 8]], dtype=np.float32)
    assert Readout(kind="attention").reduce(scores) == pytest.approx([-7])


@given(scores=several(3), readout=st.sampled_from([Readout(), *PER_CHANNEL]))
def test_channels_are_reduced_apart(scores, readout):
    """Several channels at once are each channel on its own."""
    apart = [reduce(readout, scores[:, channel]) for channel in range(3)]
    np.testing.assert_allclose(readout.reduce(scores), apart, rtol=1e-12, atol=1e-12)


@given(scores=several(1), shift=st.integers(-64, 64), readout=st.sampled_from([Readout(), *PER_CHANNEL]))
def test_a_readout_commutes_with_a_shift(scores, shift, readout):
    """Adding to every token's score adds to the value: a bias may be added after."""
    np.testing.assert_allclose(readout.reduce(scores + np.float32(shift)), readout.reduce(scores) + shift, atol=1e-3)


@given(scores=several(4), cuts=st.sets(st.integers(1, 11)), order=st.randoms(use_true_random=False))
def test_weighted_means_merge(scores, cuts, order):
    """Taken in in any chunks and merged in any order, tokens give what they give all at once."""
    exact = scores.astype(float)
    logits, values = exact[:, ::2], exact[:, 1::2]
    chunks = np.split(np.arange(len(exact)), sorted(cut for cut in cuts if cut < len(exact)))
    order.shuffle(chunks)
    merged = None
    for rows in chunks:
        part = WeightedMean.of(logits[rows], values[rows])
        merged = merged.merge(part) if merged else part
    np.testing.assert_allclose(merged.value(), WeightedMean.of(logits, values).value(), rtol=1e-9, atol=1e-9)


@given(num_tokens=st.integers(1, 500), offset=st.integers(0, 600))
def test_last_needs_one_token(num_tokens, offset):
    """`last` reads the token `offset` before the last; a raw prompt shorter than the offset is read at its first
    token.
    """
    positions = Readout(kind="last", offset=offset).positions(whole(num_tokens))
    assert list(positions) == [max(0, num_tokens - 1 - offset)]


@pytest.mark.parametrize("readout", POOLED, ids=lambda readout: readout.kind)
def test_pooled_readouts_need_every_token(readout):
    """All positions, in order."""
    assert list(readout.positions(whole(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("readout", POOLED, ids=lambda readout: readout.kind)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_token_without_a_score_leaves_the_prompt_without_one(readout, place):
    """NaN marks a token that was never scored: no readout that needs the token may answer with a number."""
    scores = np.repeat(np.arange(7, dtype=np.float32)[::-1, None], 4, axis=1)
    scores[place] = np.nan
    assert np.isnan(readout.reduce(scores)).all()


@pytest.mark.parametrize("channel", range(4))
@pytest.mark.parametrize("readout", POOLED, ids=lambda readout: readout.kind)
def test_one_channel_without_a_score_is_enough(readout, channel):
    """The value that needs the channel is NaN, also where other tokens and channels outweigh it; the rest stand."""
    scores = np.zeros((5, 4), dtype=np.float32)
    scores[4, ::2] = 1000
    scores[1, channel] = np.nan
    missing = channel // 2 if readout.kind == "attention" else channel
    assert np.flatnonzero(np.isnan(readout.reduce(scores))).tolist() == [missing]


@given(scores=several(2), readout=st.sampled_from(POOLED))
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
        {"kind": "softmax", "temperature": 0.0},
        {"kind": "softmax", "temperature": math.inf},
        {"kind": "max", "stride": 2},
    ],
)
def test_readouts_that_mean_nothing_are_refused(fields):
    """Unknown kinds and keys, and numbers outside their range, do not pass validation."""
    with pytest.raises(ValidationError):
        Readout(**fields)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_graph_is_the_same_readout(kind, tokens):
    """On tensors as on arrays, and gradients reach the scores."""
    scores = np.random.default_rng(tokens).normal(size=(tokens, 4)).astype(np.float32)
    readout = Readout(kind=kind)
    tensor = torch.tensor(scores, requires_grad=True)
    found = readout.graph(tensor)
    assert len(found) == readout.num_values(4)
    np.testing.assert_allclose(found.detach().numpy(), readout.reduce(scores), rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert tensor.grad.abs().sum() > 0
