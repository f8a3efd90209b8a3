"""Answers are read token by token as their whole would be read at once, many of them side by side."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.answer_reading import AnswersRead, WatchBank
from probes.manifest import Watch
from probes.readout import Readout

EMA = Watch(name="a", probe="p", readout=Readout(kind="ema", alpha=0.3), max_tokens=4)
SWIM = Watch(name="b", probe="p", readout=Readout(kind="swim", window=3), max_tokens=6)


def bank(*watches, seed=0):
    """Watches with centres and spreads drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for watch in watches:
        tensors[f"watch.{watch.name}.centre"] = torch.randn(watch.max_tokens, generator=generator)
        tensors[f"watch.{watch.name}.spread"] = torch.rand(watch.max_tokens, generator=generator) + 0.1
    return WatchBank.of(watches, tensors)


def plainly(watches, scores):
    """The answer's score, by the definition: means over lists, one watch after another."""
    found = []
    for column, watch in enumerate(watches.watches):
        own, level, best = scores[:, column], scores[0, column], -np.inf
        for t, score in enumerate(own):
            level += watch.readout.alpha * (score - level)
            window = own[max(0, t + 1 - watch.readout.window) : t + 1]
            now = level if watch.readout.kind == "ema" else sum(window) / len(window)
            at = min(t, watch.max_tokens - 1)
            best = max(best, (now - watches.centre[at, column]) / watches.spread[at, column])
        found.append(best)
    return found


@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_answers_side_by_side_score_as_each_alone_by_the_definition(seed, lengths):
    """Of any lengths, past the calibrated one too, begun anew in a row that another answer had before."""
    watches, numbers = bank(EMA, SWIM), np.random.default_rng(seed)
    answers = [numbers.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    read = AnswersRead(watches, len(answers))
    everyone = np.arange(len(answers))
    read.begin(everyone)
    read.read(everyone, numbers.normal(size=(len(answers), 2)))
    read.begin(everyone)
    for t in range(max(lengths)):
        rows = np.array([row for row, answer in enumerate(answers) if t < len(answer)])
        read.read(rows, np.stack([answers[row][t] for row in rows]))
    assert read.counts(everyone).tolist() == lengths
    for row, answer in enumerate(answers):
        assert read.scores(np.array([row]))[0] == pytest.approx(plainly(watches, answer.astype(np.float64)), abs=1e-9)


def test_a_token_without_a_score_leaves_its_answer_without_one():
    """To its end, and its neighbour not."""
    read, rows = AnswersRead(bank(EMA, SWIM), 2), np.arange(2)
    read.begin(rows)
    for scores in ([[1.0, 1.0], [1.0, 1.0]], [[np.nan, np.nan], [1.0, 1.0]], *[[[1.0, 1.0], [1.0, 1.0]]] * 5):
        read.read(rows, np.array(scores))
    assert np.isnan(read.scores(rows)[0]).all()
    assert np.isfinite(read.scores(rows)[1]).all()


def test_before_the_first_token_nothing_is_above_any_threshold():
    """An answer that has begun has no score yet."""
    read = AnswersRead(bank(EMA), 1)
    read.begin(np.array([0]))
    assert read.scores(np.array([0])).tolist() == [[-np.inf]]


@pytest.mark.parametrize("kind", ["last", "mean", "max", "softmax", "attention"])
def test_only_moving_means_watch(kind):
    """Another readout is refused where the manifest is read."""
    with pytest.raises(ValueError, match="moving mean"):
        Watch(name="a", probe="p", readout=Readout(kind=kind), max_tokens=4)
