"""Training on tokens: one loop for every probe whose loss sees all tokens of a prompt.

The probe is linear in each channel, so standardisation is folded into its weight. The loss says what the channels' token
scores must do, and thereby which readout they are trained for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from calibration.methods.tokens.token_streams import TokenStreams
from calibration.prompts.progress import track

_BATCH = 64
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Token scores of B prompts, padded on the right to the longest."""

    scores: torch.Tensor
    """`[B, T, C]`; nothing may depend on what stands behind a prompt's end."""
    lengths: torch.Tensor
    """int64 `[B]`."""

    @property
    def mask(self) -> torch.Tensor:
        """Which are the prompt's own tokens, bool `[B, T]`."""
        return torch.arange(self.scores.shape[1]) < self.lengths[:, None]


Loss = Callable[[TokenScores, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(token scores, bias, labels [B] of 0 and 1)` to one loss per prompt `[B]`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind of probe is trained."""

    loss: Loss
    shifts: tuple[float, ...]
    """For each of its C channels, what the score gains when the channel's token scores all gain 1."""
    spread: float
    """Standard deviation of the untrained token scores, which tells the channels apart; 0 where there is one."""
    steps: int
    """At least so many, in whole epochs: few prompts are seen more often."""
    learning_rate: float
    decay: float
    """AdamW's weight decay (arXiv 1711.05101), on standardised features."""


def train(tokens: TokenStreams, recipe: Recipe) -> tuple[torch.Tensor, float]:
    """Return weight `[L, C, D]` and bias after AdamW on standardised streams, classes weighted equally."""
    mean, scale = (each.flatten() for each in tokens.moments())
    start = torch.randn(len(recipe.shifts), len(mean), generator=torch.Generator().manual_seed(_SEED))
    weight = (start * recipe.spread / len(mean) ** 0.5).requires_grad_()
    bias = torch.zeros((), requires_grad=True)
    groups = [{"params": [weight], "weight_decay": recipe.decay}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    harmful = torch.from_numpy(tokens.harmful).float()
    importance = torch.where(harmful > 0, 0.5 / harmful.mean(), 0.5 / (1 - harmful.mean()))
    for rows in _shuffled(len(harmful), recipe.steps):
        scores = _scores(tokens, rows, weight / scale, mean)
        losses = recipe.loss(scores, bias, harmful[rows])
        optimizer.zero_grad()
        (importance[rows] * losses).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimizer.step()
    folded = weight.detach() / scale
    offset = (folded @ mean) @ torch.tensor(recipe.shifts)
    by_layer = folded.unflatten(1, tokens.streams[0].shape[1:]).transpose(0, 1)
    return by_layer.contiguous(), float(bias.detach() - offset)


def _shuffled(count: int, steps: int) -> Iterator[torch.Tensor]:
    rng, batches = np.random.default_rng(_SEED), -(-count // _BATCH)
    for _ in track(range(-(-steps // batches)), "training on every token"):
        yield from map(torch.from_numpy, np.array_split(rng.permutation(count), batches))


def _scores(tokens: TokenStreams, rows: torch.Tensor, folded: torch.Tensor, mean: torch.Tensor) -> TokenScores:
    chosen = [tokens.streams[row] for row in rows.tolist()]
    lengths = [len(stream) for stream in chosen]
    together = linear(torch.cat(chosen).flatten(1).float(), folded, -(folded @ mean))
    return TokenScores(pad_sequence(list(torch.split(together, lengths)), batch_first=True), torch.tensor(lengths))
