"""A perceptron on every token finds what no linear reading of tokens does, and serves as it was fitted."""

import numpy as np
import pytest
import torch
from recorded import training_set
from tiny import make_prompts

from calibration.fitting.metrics import auroc
from calibration.methods.tokens.content import RECIPE as LINEAR
from calibration.methods.tokens.content import fit_content
from calibration.methods.tokens.content_streams import read_content
from calibration.methods.tokens.token_level import score_rows
from calibration.methods.tokens.token_perceptron import _LAYERS, _RECIPE, _outputs, fit_token_perceptron
from calibration.methods.tokens.token_streams import TokenStreams, request_values
from calibration.methods.tokens.token_training import train, train_perceptron
from probes.manifest import EMBEDDINGS
from probes.readout import Readout

WIDTH = 16


def same_or_not(count, seed):
    """Streams in which one stretch of each prompt is moved along two axes: in harmful ones both the same way.

    Each axis alone goes either way in both classes, so that no linear reading of a token tells them apart.
    """
    rng = np.random.default_rng(seed)
    harmful = rng.random(count) < 0.5
    streams = []
    for is_harmful in harmful:
        stream = rng.normal(0, 1, (int(rng.integers(20, 41)), 1, WIDTH))
        start, sign = int(rng.integers(0, len(stream) - 16)), rng.choice([-1, 1])
        stream[start : start + 16, 0, 3] += 4 * sign
        stream[start : start + 16, 0, 9] += 4 * (sign if is_harmful else -sign)
        streams.append(torch.from_numpy(stream.astype(np.float32)))
    return TokenStreams(tuple(streams), harmful)


def area(scores, streams):
    values = request_values(scores, Readout(kind="swim", window=8))
    return auroc(values[streams.harmful], values[~streams.harmful])


def test_what_two_readings_say_only_together_is_found():
    """Harm is where two readings of a token agree.

    The linear probe that is trained on the same tokens finds nothing.
    """
    fit, rest = same_or_not(400, 0), same_or_not(300, 1)
    found = train_perceptron(fit, _RECIPE, 32)
    assert area(_outputs(found, rest.token_scores(found.inner)), rest) > 0.95
    weight, _ = train(fit, LINEAR)
    assert area(rest.token_scores(weight), rest) < 0.65


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's training set."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


def test_the_fitted_probe_serves_as_it_was_fitted(training):
    """Scores by the probe bank, which serves, are those that training saw, and they separate the planted classes."""
    [probe] = fit_token_perceptron(training).probes
    assert (probe.spec.readout.over, probe.spec.head_reads) == ("content", "token")
    served = score_rows(training, [probe], np.arange(len(training.harmful)))[:, 0]
    select = read_content(training, _LAYERS).select
    tensors = {name: tensor.double().numpy() for name, tensor in probe.head.items()}
    for row, units in zip(training.select, select.token_scores(probe.weight), strict=True):
        each = np.maximum(units + tensors["head_bias"], 0) @ tensors["head_weight"] + probe.spec.bias
        width = min(probe.spec.readout.window, len(each))
        assert served[row] == pytest.approx(np.convolve(each, np.ones(width) / width, "valid").max(), abs=1e-3)
    assert auroc(served[training.harmful], served[~training.harmful]) > 0.99


def test_both_probes_of_the_content_are_fitted_on_the_same_prompts(training):
    """So that their difference is what the hidden units add."""
    content, perceptron = fit_content(training).probes[0], fit_token_perceptron(training).probes[0]
    assert set(perceptron.spec.layers) <= set(content.spec.layers)
    assert perceptron.spec.layers[0] == EMBEDDINGS
    assert len(perceptron.spec.layers) <= 1 + _LAYERS
    assert content.spec.evidence.keys() == perceptron.spec.evidence.keys()
