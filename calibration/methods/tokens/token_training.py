"""Training on tokens: one loop for every probe whose loss sees all tokens of a prompt.

The probe is linear in each channel, so standardisation is folded into its weight. The loss says what the channels'
token scores must do, and thereby which readout they are trained for. A perceptron's channels are its hidden units:
what the loss sees is the output unit's score of each token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Perceptron:
    """Hidden units on every token, and an output unit whose score of a token the readout pools."""

    inner: torch.Tensor
    """`[L, H, D]`."""
    inner_bias: torch.Tensor
    """`[H]`."""
    outer: torch.Tensor
    """`[H]`."""
    bias: float
    """The output unit's."""


def train(tokens: TokenStreams, recipe: Recipe) -> tuple[torch.Tensor, float]:
    """Return weight `[L, C, D]` and bias after AdamW on standardised streams, classes weighted equally."""
    mean, scale = (each.flatten() for each in tokens.moments())
    weight = _drawn(len(recipe.shifts), len(mean), recipe.spread)
    bias = torch.zeros((), requires_grad=True)
    _descend(tokens, recipe, [weight], [bias], lambda rows: (_scores(tokens, rows, weight / scale, mean), bias))
    folded = weight.detach() / scale
    offset = (folded @ mean) @ torch.tensor(recipe.shifts)
    return _by_layer(folded, tokens), float(bias.detach() - offset)


def train_perceptron(tokens: TokenStreams, recipe: Recipe, hidden: int) -> Perceptron:
    """Return a perceptron of `hidden` units, trained as by `train`.

    Its output is the one channel of the recipe's loss.
    """
    mean, scale = (each.flatten() for each in tokens.moments())
    weight = _drawn(hidden, len(mean), recipe.spread)
    outer = _drawn(1, hidden, recipe.spread)
    inner_bias, bias = torch.zeros(hidden, requires_grad=True), torch.zeros((), requires_grad=True)

    def scored(rows: torch.Tensor) -> tuple[TokenScores, torch.Tensor]:
        units = _scores(tokens, rows, weight / scale, mean)
        return replace(units, scores=(units.scores + inner_bias).relu() @ outer.T), bias

    _descend(tokens, recipe, [weight, outer], [inner_bias, bias], scored)
    folded = weight.detach() / scale
    return Perceptron(
        _by_layer(folded, tokens), inner_bias.detach() - folded @ mean, outer.detach()[0], float(bias.detach())
    )


def _drawn(rows: int, columns: int, spread: float) -> torch.Tensor:
    drawn: torch.Tensor = torch.randn(rows, columns, generator=torch.Generator().manual_seed(_SEED))
    weight: torch.Tensor = drawn * spread / columns**0.5
    return weight.requires_grad_()


def _by_layer(folded: torch.Tensor, tokens: TokenStreams) -> torch.Tensor:
    num_layers, width = tokens.streams[0].shape[1:]
    by_layer: torch.Tensor = folded.reshape(-1, num_layers, width).transpose(0, 1)
    return by_layer.contiguous()


def _descend(
    tokens: TokenStreams,
    recipe: Recipe,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    scored: Callable[[torch.Tensor], tuple[TokenScores, torch.Tensor]],
) -> None:
    """Train weights, which decay, and biases, which do not. `scored` gives some rows' token scores, and the bias."""
    groups = [{"params": weights, "weight_decay": recipe.decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    harmful = torch.from_numpy(tokens.harmful).float()
    importance = torch.where(harmful > 0, 0.5 / harmful.mean(), 0.5 / (1 - harmful.mean()))
    for rows in _shuffled(len(harmful), recipe.steps):
        losses = recipe.loss(*scored(rows), harmful[rows])
        optimizer.zero_grad()
        (importance[rows] * losses).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimizer.step()


def _shuffled(count: int, steps: int) -> Iterator[torch.Tensor]:
    rng, batches = np.random.default_rng(_SEED), -(-count // _BATCH)
    for _ in track(range(-(-steps // batches)), "training on every token"):
        yield from map(torch.from_numpy, np.array_split(rng.permutation(count), batches))


def _scores(tokens: TokenStreams, rows: torch.Tensor, folded: torch.Tensor, mean: torch.Tensor) -> TokenScores:
    chosen = [tokens.streams[row] for row in rows.tolist()]
    lengths = [len(stream) for stream in chosen]
    together = linear(torch.cat(chosen).flatten(1).float(), folded, -(folded @ mean))
    return TokenScores(pad_sequence(list(torch.split(together, lengths)), batch_first=True), torch.tensor(lengths))
