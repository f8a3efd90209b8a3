"""Token-level probe: a linear reading of every token, trained for the worst window of the prompt and not for its end.

Evidence of harm may stand anywhere in a prompt, and a wrapper may leave none at its last token (arXiv 2605.12726). As in
Constitutional Classifiers++ (arXiv 2601.04603): with z the token logits and z̄ their means over sliding windows of M = 16
tokens, the loss of a prompt with label y is `sum_t w_t BCE(y, z̄_t)`, `w = softmax(z̄)`. The softmax forgives a harmful
prompt its harmless stretches and punishes any confident window of a harmless one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from calibration.activations import read_blocks
from calibration.batching import iterate_batches
from calibration.methods.fitted import Fitted, FittedProbe
from calibration.methods.training import Rows, TrainingSet
from calibration.metrics import auroc, recall_at
from calibration.progress import track
from calibration.request_scores import score_prompts
from probes.manifest import Probe
from probes.readout import Readout
from probes.scoring import ProbeBank

WINDOW = 16
_READOUTS = (
    Readout(kind="swim", window=WINDOW),
    Readout(kind="ema", alpha=0.5),
    Readout(kind="max"),
    Readout(kind="mean"),
)
_DEPTHS = (0.25, 0.85)
_MOST_LAYERS = 8
_MOST_PROMPTS = 1000
"""Per class. The paper found that more data did not help."""
_MOST_BYTES = 2 << 30
"""Held while training; a wide model reads fewer blocks rather than more memory."""
_EPOCHS, _BATCH, _LEARNING_RATE, _PENALTY = 12, 64, 0.01, 1e-3
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The streams of N prompts, and their labels."""

    streams: list[torch.Tensor]
    """Per prompt `[T, L, D]`, in the model's precision."""
    harmful: npt.NDArray[np.bool_]


def fit_token_level(training: TrainingSet) -> Fitted:
    """Return probe `tokens`, with the readout that serves it best on the selection prompts."""
    rows = {name: _sample(training, part) for name, part in (("fit", training.fit), ("select", training.select))}
    layers = _layers(training, np.concatenate(list(rows.values())))
    fit, select = (_read(training, part, layers) for part in rows.values())
    weight, bias = _train(fit)
    judged = [(*_judge(select, weight, bias, readout), readout) for readout in _READOUTS]
    recall, area, readout = max(judged, key=lambda each: each[:2])
    spec = Probe(
        name="tokens",
        method="linear on every token, softmax-weighted sliding windows",
        layers=layers,
        readout=readout,
        bias=bias,
        evidence={"selection_auroc": area, "selection_recall": recall},
    )
    return Fitted(probes=(FittedProbe(spec, weight.unsqueeze(1)),))


def _sample(training: TrainingSet, rows: Rows) -> Rows:
    sides = [training.sample(rows, harmful=label, most=_MOST_PROMPTS) for label in (False, True)]
    return np.sort(np.concatenate(sides))


def _layers(training: TrainingSet, rows: Rows) -> tuple[int, ...]:
    """Return blocks between a quarter and 85 % of the depth, as many as fit into memory, evenly spread."""
    depth = training.chat.num_layers
    low, high = (share * depth for share in _DEPTHS)
    middle = [layer for layer in range(depth) if low <= layer + 1 <= high] or [depth - 1]
    per_layer = int(training.prompts.lengths[rows].sum()) * training.chat.hidden_size * 4
    most = max(min(len(middle), _MOST_LAYERS, _MOST_BYTES // per_layer), 1)
    keep = np.unique(np.linspace(0, len(middle) - 1, most).round().astype(int))
    return tuple(middle[index] for index in keep)


def _read(training: TrainingSet, rows: Rows, layers: Sequence[int]) -> _Tokens:
    streams: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for index, stream in _each(training, rows, layers):
        streams[index] = stream
    return _Tokens(streams, training.harmful[rows])


def _each(training: TrainingSet, rows: Rows, layers: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield every prompt of `rows`, in no order: its index and its stream `[T, L, D]`."""
    batches = list(iterate_batches(training.prompts.subset(rows).token_ids, training.chat.device))
    for batch in track(batches, "reading every token"):
        with read_blocks(training.chat, layers, lambda stream: stream.cpu()) as kept:
            training.chat.last_logits(batch)
        for place, (index, length) in enumerate(zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)):
            yield index, torch.stack([kept[layer][place, :length] for layer in layers], dim=1)


def score_rows(training: TrainingSet, probe: FittedProbe, rows: Rows) -> npt.NDArray[np.float64]:
    """Return a probe's scores on training prompts `rows`, whatever its readout, by passing them through the model."""
    bank = ProbeBank.of([probe.spec], probe.tensors())
    scored = score_prompts(training.chat, bank, training.prompts.subset(rows), title="reading every token")
    return scored.scores[:, 0].astype(np.float64)


def _reduce(stream: torch.Tensor, weight: torch.Tensor, bias: float, readout: Readout) -> float:
    token_scores = (stream.float() * weight).sum((1, 2)).numpy()
    places = readout.positions(len(token_scores))
    return float(readout.reduce(token_scores[places.start : places.stop, None])[0]) + bias


def _train(tokens: _Tokens) -> tuple[torch.Tensor, float]:
    """Return weight `[L, D]` and bias, by Adam on standardised streams, classes weighted equally."""
    mean, scale = _moments(tokens.streams)
    weight = torch.zeros(mean.shape, requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_LEARNING_RATE)
    for logits, labels, importance in _batches(tokens, mean, scale, weight, bias):
        loss = (importance * softmax_window_loss(logits, labels)).mean() + _PENALTY * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimizer.step()
    folded = weight.detach() / scale
    return folded, float(bias.detach() - (folded * mean).sum())


def _moments(streams: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation `[L, D]` over all tokens, accumulated in float64."""
    count = sum(len(stream) for stream in streams)
    mean = torch.stack([stream.double().sum(0) for stream in streams]).sum(0) / count
    square = torch.stack([(stream.double() - mean).square().sum(0) for stream in streams]).sum(0) / count
    return mean.float(), square.sqrt().clamp(min=1e-6).float()


def _batches(
    tokens: _Tokens, mean: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]]:
    """Yield (token logits per prompt, labels, class weights) of shuffled batches, epoch after epoch."""
    rng = np.random.default_rng(_SEED)
    harmful = torch.from_numpy(tokens.harmful).float()
    share = float(harmful.mean())
    importance = torch.where(harmful > 0, 0.5 / share, 0.5 / (1 - share))
    for _ in track(range(_EPOCHS), "training the token-level probe"):
        for rows in np.array_split(rng.permutation(len(harmful)), -(-len(harmful) // _BATCH)):
            chosen = [tokens.streams[row] for row in rows]
            together = (torch.cat(chosen).float() - mean) / scale
            logits = (together * weight).sum((1, 2)) + bias
            index = torch.from_numpy(rows)
            yield list(torch.split(logits, [len(stream) for stream in chosen])), harmful[index], importance[index]


def softmax_window_loss(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return each prompt's loss `[B]` from its token logits, `B` tensors `[T]`, and labels `[B]` of 0 and 1.

    A prompt shorter than the window is one window, as the `swim` readout has it.
    """
    losses = []
    for scores, label in zip(logits, labels, strict=True):
        windows = scores.unfold(0, min(WINDOW, len(scores)), 1).mean(1)
        cost = binary_cross_entropy_with_logits(windows, label.expand_as(windows), reduction="none")
        losses.append((windows.softmax(0) * cost).sum())
    return torch.stack(losses)


def _judge(select: _Tokens, weight: torch.Tensor, bias: float, readout: Readout) -> tuple[float, float]:
    scores = np.array([_reduce(stream, weight, bias, readout) for stream in select.streams])
    above, below = scores[select.harmful], scores[~select.harmful]
    return recall_at(above, below, 0.01), auroc(above, below)
