"""Statistics that stream: the same as of everything at once, in memory that does not grow with the prompts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded import training_set
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tiny import HIDDEN, make_prompts

from calibration.fitting import training_set as training_module
from calibration.methods.classifiers.discriminant import fit_lda
from calibration.methods.classifiers.linear_classifiers import fit_classifiers
from calibration.recording import shards
from calibration.recording.moments import Moments


def clouds(count=300, width=12, offset=1000.0):
    """Correlated points far from zero, where sums of squares lose their digits."""
    rng = np.random.default_rng(count)
    return (rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset).astype(np.float32)


@given(st.lists(st.integers(1, 299), max_size=6, unique=True), st.randoms(use_true_random=False))
def test_moments_of_parts_are_the_moments_of_all(cuts, chance):
    """However the points are cut, and in whatever order the parts are merged, numpy's mean and covariance come out."""
    points = clouds()
    parts = [Moments.of(part, covariance=True) for part in np.split(points, sorted(cuts))]
    chance.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    exact = points.astype(np.float64)
    assert merged.count == 300
    np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(exact.T, bias=True), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.variance, exact.var(axis=0), rtol=1e-9)


def test_variances_alone_need_no_matrix():
    """Without covariance a part holds D numbers, and they are the matrix's diagonal."""
    whole, thin = (Moments.of(clouds(), covariance=asked) for asked in (True, False))
    assert thin.scatter.shape == (12,)
    np.testing.assert_allclose(thin.variance, whole.variance)


@pytest.mark.parametrize("width", [4, 60])
def test_the_streamed_discriminant_is_scikit_learns(width):
    """In pieces, with a feature that never varies, and with fewer prompts than dimensions: scikit-learn's
    coefficients.
    """
    points = clouds(50, width, offset=3.0)
    points[:, 1] = 7.0
    harmful = np.arange(50) % 3 == 0
    points[harmful, 0] += 2
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5])
    reference.fit(points.astype(np.float64), harmful)
    pieces = np.array_split(np.arange(50), 6)
    found = fit_lda(lambda: ((points[rows], harmful[rows]) for rows in pieces))
    np.testing.assert_allclose(found.weight, reference.coef_[0], rtol=1e-6, atol=1e-9)
    assert found.bias == pytest.approx(reference.intercept_[0], rel=1e-6)


@pytest.fixture
def many_shards(planted_chat, tmp_path, monkeypatch):
    """A training set in a dozen shards."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 20 * 4 * 3 * HIDDEN * 4)
    training = training_set(planted_chat, tmp_path, make_prompts(240, 0))
    assert len(training.recording.shards) > 8
    return training


def test_what_streams_is_what_is_read_whole(many_shards):
    """Moments, projections and chosen rows of a sharded recording are those of its features."""
    training, rows = many_shards, many_shards.fit
    features = training.features(1, 0)
    for label, moments in zip((False, True), training.moments(1, 0, rows, covariance=True), strict=True):
        chosen = features[rows[training.harmful[rows] == label]].astype(np.float64)
        assert moments.count == len(chosen)
        np.testing.assert_allclose(moments.mean, chosen.mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(moments.covariance, np.cov(chosen.T, bias=True), atol=1e-10)
    weight = np.random.default_rng(0).normal(size=HIDDEN)
    np.testing.assert_allclose(training.project(1, 0, weight), features.astype(np.float64) @ weight)
    backwards = rows[::-1]
    assert np.array_equal(training.features(1, 0, backwards), features[backwards])
    twice = np.array([7, 3, 7, 7, 0])
    assert np.array_equal(training.features(1, 0, twice), features[twice])


def test_rows_come_in_the_order_asked_for_however_often(many_shards):
    """A prompt that is named twice is read twice: nothing is left as the memory happened to be."""
    rows = np.array([7, 2, 7, 0, 2])
    read = many_shards.features(1, 0, rows)
    np.testing.assert_array_equal(read, many_shards.features(1, 0)[rows])


def test_fits_that_hold_their_prompts_hold_a_bounded_sample(many_shards, monkeypatch):
    """Past the bound a fit gets as many prompts as fit, of both classes in their shares, and still separates."""
    monkeypatch.setattr(training_module, "_MOST_BYTES", 60 * 8 * HIDDEN)
    rows = many_shards.held(many_shards.fit)
    assert 50 <= len(rows) <= 60
    assert set(rows) <= set(many_shards.fit)
    assert many_shards.harmful[rows].mean() == pytest.approx(many_shards.harmful[many_shards.fit].mean(), abs=0.05)
    assert np.array_equal(rows, many_shards.held(many_shards.fit))
    best = fit_classifiers(many_shards).probes[0]
    assert best.spec.evidence["selection_auroc"] > 0.99


_READ_MANY = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path[:0] = [sys.argv[1]]
from tiny import make_model, make_prompts, make_tokenizer
from calibration.recording import shards
from calibration.recording.activations import record
from calibration.fitting import training_set as bounded
from calibration.methods.classifiers.linear_classifiers import fit_classifiers
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.fitting.training_set import TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.prompts.prompt_file import PromptFile
from calibration.prompts.template import EncodedPrompts

folder, count = Path(sys.argv[2]), int(sys.argv[3])
shards._SHARD_BYTES, bounded._MOST_BYTES = 1 << 20, 1 << 18
tokenizer = make_tokenizer()
chat = ChatModel.wrap(make_model(len(tokenizer), hidden_size=128, num_attention_heads=4), tokenizer)

class Labelled:
    __slots__ = ("is_harmful", "line")
    id, source = "p", None
    def __init__(self, line): self.is_harmful, self.line = line % 2 == 1, line

rng = np.random.default_rng(0)
tokens = rng.integers(7, len(tokenizer), size=(64, 6))
ids = [tuple(row) for row in tokens.tolist()]
chosen = tuple(map(Labelled, range(count))), tuple(ids[i % 64] for i in range(count))
encoded = EncodedPrompts(PromptFile("p", "", ()), *chosen)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
recording = record(chat, encoded, (0, 1, "content"), folder)
training = TrainingSet.split(chat, encoded, recording, 1)
training.moments(2, "content", training.fit, covariance=True)
fit_harmfulness_direction(training)
fit_classifiers(training)
on_disk = sum(path.stat().st_size for path in recording.shards) >> 10
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, on_disk)
"""


@pytest.mark.long
def test_a_process_that_reads_twenty_times_the_prompts_needs_no_more_memory(tmp_path):
    """Recording and fitting 20,000 prompts peaks within 24 MB of 1,000, though 90 MB of activations lie on disk."""
    peaks = {}
    for count in (1000, 20_000):
        command = [
            sys.executable,
            "-c",
            _READ_MANY,
            str(Path(__file__).parents[1]),
            str(tmp_path / str(count)),
            str(count),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[count], on_disk = map(int, done.stdout.split())
    assert on_disk > 80 << 10
    assert peaks[20_000] - peaks[1000] < 24 << 10, peaks


def test_a_shard_that_is_cut_short_is_written_again(planted_chat, tmp_path):
    """Half a file, as a power cut may leave it, is not taken for a shard."""
    first = training_set(planted_chat, tmp_path, make_prompts(40, 0))
    (path,) = first.recording.shards
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    training_set(planted_chat, tmp_path, make_prompts(40, 0))
    assert path.read_bytes() == whole
    assert torch.isfinite(torch.from_numpy(first.features(0, 0))).all()
