"""Massive activations: a few coordinates of the stream that are orders of magnitude above all others (arXiv
2402.17762).

They stand at few tokens (the first, delimiters) and hardly depend on the prompt, yet any variance or distance that
includes them is theirs alone. So they are looked for wherever a distance is taken, and left out of it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.training_set import Rows, TrainingSet
from calibration.prompts.batching import iterate_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.recording.activations import read_blocks
from calibration.recording.places import Where

RATIO = 100.0
"""Times the median magnitude of its vector."""
_TOP_SHARE = 0.01
"""A vector has no more massive coordinates than this: where most are near zero, any ordinary one is above the ratio."""
_LEAST_SHARE = 0.001
"""Of prompts in which a coordinate is massive for it to count.

At 100 times the rest, that is 10 times their variance.
"""
_MOST_PROMPTS = 32
"""Per class, whose every token is looked at."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Peak:
    """What was seen of one block over all tokens of some prompts."""

    ratio: float
    """The largest magnitude over the median of its vector."""
    coordinate: int
    position: int
    """Of the token that has it, counted from 0."""
    massive: Mask
    """`[D]`: coordinates that are massive at any token."""


def massive(values: npt.NDArray[np.floating]) -> Mask:
    """Return which coordinates of `values` `[N, D]` are massive in their vector, `[N, D]`."""
    size = np.abs(values)
    most = max(int(size.shape[1] * _TOP_SHARE), 1)
    least_of_top = np.partition(size, -most, axis=1)[:, -most, None]
    return np.asarray((size > RATIO * np.median(size, axis=1, keepdims=True)) & (size >= least_of_top))


def massive_in_recording(training: TrainingSet, layer: int, where: Where, rows: Rows) -> Mask:
    """Return the coordinates `[D]` that are massive at `where` in one of a thousand prompts `rows`, or more."""
    counts = np.zeros(training.chat.hidden_size, dtype=np.int64)
    for values, _ in training.chunks(layer, where, rows):
        counts += massive(values).sum(axis=0)
    return counts >= max(_LEAST_SHARE * len(rows), 1)


def survey_tokens(training: TrainingSet) -> list[Peak]:
    """Return what every block holds at all tokens of a few fit prompts of both classes, `[L]`."""
    sides = [training.sample(training.fit, harmful=label, most=_MOST_PROMPTS) for label in (False, True)]
    return _survey(training, training.prompts.subset(np.concatenate(sides)))


def _survey(training: TrainingSet, prompts: EncodedPrompts) -> list[Peak]:
    layers = range(training.chat.num_layers)
    peaks = [Peak(0.0, 0, 0, np.zeros(training.chat.hidden_size, dtype=bool)) for _ in layers]
    batches = list(iterate_batches(prompts.token_ids, training.chat.device))
    for batch in track(batches, "looking for massive activations"):
        with read_blocks(training.chat, layers, lambda stream: stream.float().cpu()) as kept:
            training.chat.last_logits(batch)
        own = batch.mask.bool().cpu()
        for layer in layers:
            peaks[layer] = _higher(peaks[layer], kept[layer], own)
    return peaks


def _higher(before: Peak, streams: torch.Tensor, own: torch.Tensor) -> Peak:
    """Take in the tokens `own` `[B, T]` of `streams` `[B, T, D]`."""
    values, positions = streams[own].numpy(), own.nonzero()[:, 1].numpy()
    median = np.maximum(np.median(np.abs(values), axis=1), np.finfo(np.float32).tiny)
    ratios = np.abs(values).max(axis=1) / median
    token = int(ratios.argmax())
    found = before.massive | massive(values).any(axis=0)
    if ratios[token] <= before.ratio:
        return Peak(before.ratio, before.coordinate, before.position, found)
    return Peak(float(ratios[token]), int(np.abs(values[token]).argmax()), int(positions[token]), found)
