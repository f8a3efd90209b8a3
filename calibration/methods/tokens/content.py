"""Probes `content` and `wording`: linear readings of every token of a turn but the chat template's own, by the worst
window.

Neither sees the template's tail. What they read of a request stays in the scores whatever stands behind it; requests
with other text before them are among what they are trained on. `wording` reads the embeddings alone: what the words of
a request are, and nothing of what is meant. So nothing that stands before a request moves its score. Both are trained
as `tokens` is (arXiv 2601.04603).
"""

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.training_set import TrainingSet
from calibration.methods.tokens.content_streams import READOUT, ContentStreams, read_content
from calibration.methods.tokens.token_losses import WINDOW, softmax_window_loss
from calibration.methods.tokens.token_training import Recipe, train
from probes.manifest import Probe

RECIPE = Recipe(softmax_window_loss, (1.0,), spread=0.0, steps=600, learning_rate=0.01, decay=0.1)


def fit_content(training: TrainingSet) -> Fitted:
    """Return probe `content`, which reads embeddings, and blocks between a quarter and 85 % of the depth; and probe
    `wording`, which reads embeddings.
    """
    streams = read_content(training)
    return Fitted(probes=(_fitted("content", streams), _fitted("wording", streams.of_embeddings())))


def _fitted(name: str, streams: ContentStreams) -> FittedProbe:
    weight, bias = train(streams.fit, RECIPE)
    spec = Probe(
        name=name,
        method=f"linear on every token but the template's, windows of {WINDOW} tokens in training",
        layers=streams.layers,
        readout=READOUT,
        bias=bias,
        evidence=streams.evidence(streams.select.token_scores(weight)),
    )
    return FittedProbe(spec, weight)


METHOD = Method("content", fit_content, rank=60, plain=True)
