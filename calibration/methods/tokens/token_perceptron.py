"""Probe `token_perceptron`: a perceptron on every token of a turn but the chat template's own, by its worst window.

After SingProbe (arXiv 2608.30703), which reads three blocks through a small perceptron, token by token. Its hidden
units are channels of the tap, so that the model's pass stays linear; what follows is computed once, where the
prompt ends. It is trained on what `content` is trained on, and so shows what hidden units add to a linear reading.
"""

import numpy as np

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.training_set import TrainingSet
from calibration.methods.tokens.content_streams import READOUT, read_content
from calibration.methods.tokens.token_losses import softmax_window_loss
from calibration.methods.tokens.token_streams import Scores
from calibration.methods.tokens.token_training import Perceptron, Recipe, train_perceptron
from probes.head import HEADS
from probes.manifest import Probe

_LAYERS, _HIDDEN = 3, 64
_RECIPE = Recipe(softmax_window_loss, (1.0,), spread=1.0, steps=600, learning_rate=0.001, decay=0.1)


def fit_token_perceptron(training: TrainingSet) -> Fitted:
    """Return probe `token_perceptron`, which reads embeddings and three blocks in the middle of the depth."""
    streams = read_content(training, _LAYERS)
    found = train_perceptron(streams.fit, _RECIPE, _HIDDEN)
    spec = Probe(
        name="token_perceptron",
        method=f"perceptron of {_HIDDEN} units on every token but the template's, at {len(streams.layers)} places",
        layers=streams.layers,
        channels=_HIDDEN,
        readout=READOUT,
        head="mlp",
        head_reads="token",
        bias=found.bias,
        evidence=streams.evidence(_outputs(found, streams.select.token_scores(found.inner))),
    )
    head = {"head_bias": found.inner_bias, "head_weight": found.outer}
    return Fitted(probes=(FittedProbe(spec, found.inner, head),))


def _outputs(found: Perceptron, units: Scores) -> Scores:
    """Return the output unit's scores `[T, 1]` of each prompt, without its bias."""
    tensors = {"head_bias": found.inner_bias.double().numpy(), "head_weight": found.outer.double().numpy()}
    return [HEADS["mlp"].outputs(each.astype(np.float64), tensors)[:, None].astype(np.float32) for each in units]


METHOD = Method("token_perceptron", fit_token_perceptron, rank=65)
