"""Token-level probes: linear readings of every token, trained for evidence that stands anywhere in the prompt.

A wrapper may leave no evidence at the prompt's last token (arXiv 2605.12726). Three probes read all tokens:

- `tokens`: one channel, trained on its worst window (arXiv 2601.04603), served by the readout that does best;
- `attention`: four heads that learn where to look (arXiv 2601.11516), trained on diluted prompts too;
- `multimax`: the maxima of four channels, added up (arXiv 2601.11516).

Each loss is in `token_losses`. Streams are read once for all three.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.bank import tensors_of
from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.metrics import auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.tokens.dilution import dilute
from calibration.methods.tokens.token_losses import WINDOW, attention_loss, multimax_loss, softmax_window_loss
from calibration.methods.tokens.token_streams import (
    TokenStreams,
    affordable_tokens,
    choose_layers,
    read_streams,
    request_values,
)
from calibration.methods.tokens.token_training import Recipe, train
from calibration.prompts.template import read_template
from calibration.recording.request_scores import score_prompts
from probes.manifest import Probe
from probes.readout import Readout
from probes.scoring import ProbeBank

_MOST_PROMPTS, _MOST_DILUTED = 1000, 500
"""Per class. The papers found that more data did not help."""
_FEWEST = 16
_HEADS = _CHANNELS = 4
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class _Kind:
    """One probe: how it is trained, and what may serve it."""

    name: str
    method: str
    recipe: Recipe
    readouts: tuple[Readout, ...]


_TOKENS = _Kind(
    "tokens",
    "linear on every token, softmax-weighted sliding windows",
    Recipe(softmax_window_loss, (1.0,), spread=0.0, steps=400, learning_rate=0.01, decay=0.1),
    (
        Readout(kind="swim", window=WINDOW),
        Readout(kind="ema", alpha=0.5),
        Readout(kind="max"),
        Readout(kind="mean"),
        Readout(kind="softmax"),
    ),
)
_ATTENTION = _Kind(
    "attention",
    f"{_HEADS} attention heads over all tokens",
    Recipe(attention_loss, (0.0, 1.0) * _HEADS, spread=1.0, steps=560, learning_rate=0.003, decay=0.1),
    (Readout(kind="attention"),),
)
_MULTIMAX = _Kind(
    "multimax",
    f"sum of the maxima of {_CHANNELS} linear readings of every token",
    Recipe(multimax_loss, (1.0,) * _CHANNELS, spread=1.0, steps=400, learning_rate=0.003, decay=0.1),
    (Readout(kind="max"),),
)


def fit_token_level(training: TrainingSet) -> Fitted:
    """Return probes `tokens`, `attention` and `multimax`.

    `tokens` reads all blocks that are held; the others, which have several channels, two of them.
    """
    chat, prompts = training.chat, training.prompts
    parts = _sample(training)
    held = int(prompts.lengths[np.concatenate(parts)].sum())
    layers = choose_layers(chat, held)
    fit, select = (read_streams(chat, prompts.subset(rows), layers) for rows in parts)
    tokens = _probe(_TOKENS, layers, fit, select)
    two = _two(len(layers))
    fit, select = fit.blocks(two), select.blocks(two)
    multimax = _probe(_MULTIMAX, layers[two], fit, select)
    room = (affordable_tokens(chat) - held * len(layers)) // len(layers[two])
    attention = _probe(_ATTENTION, layers[two], fit + _diluted(training, parts[0], layers[two], room), select)
    return Fitted(probes=(tokens, attention, multimax))


def score_rows(training: TrainingSet, probes: Sequence[FittedProbe], rows: Rows) -> npt.NDArray[np.float64]:
    """Return the scores `[N, K]` of probes with any readout on training prompts `rows`, which pass through the model
    once.
    """
    template = read_template(training.chat.tokenizer)
    bank = ProbeBank.of([probe.spec for probe in probes], tensors_of(probes), template)
    return score_prompts(training.chat, bank, training.prompts.subset(rows), title="reading every token").scores.astype(
        np.float64
    )


def _sample(training: TrainingSet) -> tuple[Rows, Rows]:
    """Return fit and selection prompts of both classes, few enough that all of them can be held at one block."""
    most = _MOST_PROMPTS
    while True:
        fit, select = (_balanced(training, rows, most) for rows in (training.fit, training.select))
        held = int(training.prompts.lengths[np.concatenate([fit, select])].sum())
        if most == _FEWEST or held <= affordable_tokens(training.chat):
            return fit, select
        most = max(most * 3 // 4, _FEWEST)


def _balanced(training: TrainingSet, rows: Rows, most: int) -> Rows:
    sides = [training.sample(rows, harmful=label, most=most) for label in (False, True)]
    return np.sort(np.concatenate(sides))


def _two(count: int) -> slice:
    """Return which blocks of `count` are a quarter and three quarters of the way; a slice, so that nothing is
    copied.
    """
    first, last = count // 4, 3 * count // 4
    return slice(first, last + 1, max(last - first, 1))


def _diluted(training: TrainingSet, rows: Rows, layers: tuple[int, ...], room: int) -> TokenStreams:
    """Return the streams of diluted prompts, as many as have at most `room` tokens together."""
    mixed = np.random.default_rng(_SEED).permutation(_balanced(training, rows, _MOST_DILUTED))
    diluted = dilute(training, mixed, fillers=training.fit)
    fits = np.flatnonzero(np.cumsum(diluted.lengths) <= room)
    return read_streams(training.chat, diluted.subset(fits), layers)


def _probe(kind: _Kind, layers: tuple[int, ...], fit: TokenStreams, select: TokenStreams) -> FittedProbe:
    """Train the kind, and serve it by the readout with the best selection recall at 1 % false positives, then AUROC.

    Selection prompts are a random quarter here, and not whole sources: `docs/decisions.md` has the numbers.
    """
    weight, bias = train(fit, kind.recipe)
    recall, area, readout = max(_judged(kind, select, weight), key=lambda each: each[:2])
    spec = Probe(
        name=kind.name,
        method=kind.method,
        layers=layers,
        channels=weight.shape[1],
        readout=readout,
        bias=bias,
        evidence={"selection_auroc": area, "selection_recall": recall},
    )
    return FittedProbe(spec, weight)


def _judged(kind: _Kind, select: TokenStreams, weight: torch.Tensor) -> list[tuple[float, float, Readout]]:
    """Return recall and AUROC of each readout."""
    scores = select.token_scores(weight)
    judged = []
    for readout in kind.readouts:
        values = request_values(scores, readout)
        above, below = values[select.harmful], values[~select.harmful]
        judged.append((recall_at(above, below, 0.01), auroc(above, below), readout))
    return judged


METHOD = Method(
    "token_level",
    fit_token_level,
    rank=50,
    plain=True,
    refits=True,
    reads=dict.fromkeys(("tokens", "attention", "multimax"), "every token"),
)
