"""Losses on token scores: each trains the channels of a probe for the readout that will serve them.

`softmax_window_loss` is that of Constitutional Classifiers++ (arXiv 2601.04603): with z the token logits and z̄ their
means over sliding windows of M = 16 tokens, a prompt with label y costs `sum_t w_t BCE(y, z̄_t)`, `w = softmax(z̄)`.
The softmax forgives a harmful prompt its harmless stretches and punishes any confident window of a harmless one.

`attention_loss` and `multimax_loss` are binary cross-entropy on the request's score (arXiv 2601.11516).
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from calibration.methods.tokens.token_training import TokenScores

WINDOW = 16


def softmax_window_loss(tokens: TokenScores, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each prompt's loss `[B]` from the scores of one channel.

    A prompt shorter than the window is one window, as the `swim` readout has it.
    """
    scores = tokens.scores[..., 0].masked_fill(~tokens.mask, 0.0)
    widths = tokens.lengths.clamp(max=WINDOW)[:, None]
    starts = torch.arange(scores.shape[1])[None]
    whole = starts + widths <= tokens.lengths[:, None]
    sums = pad(scores.cumsum(1), (1, 0))
    ends = (starts + widths).clamp(max=scores.shape[1])
    windows = (sums.gather(1, ends) - sums[:, :-1]) / widths + bias
    cost = binary_cross_entropy_with_logits(windows, labels[:, None].expand_as(windows), reduction="none")
    return (windows.masked_fill(~whole, -torch.inf).softmax(1) * cost).sum(1)


def attention_loss(tokens: TokenScores, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each prompt's loss `[B]`; channels are pairs, query logits and values, as the `attention` readout has
    them.
    """
    logits, values = tokens.scores[..., ::2], tokens.scores[..., 1::2]
    weights = logits.masked_fill(~tokens.mask[..., None], -torch.inf).softmax(1)
    score = (weights * values).sum((1, 2)) + bias
    return binary_cross_entropy_with_logits(score, labels, reduction="none")


def multimax_loss(tokens: TokenScores, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each prompt's loss `[B]`; the score is the sum of the channels' maxima."""
    score = tokens.scores.masked_fill(~tokens.mask[..., None], -torch.inf).amax(1).sum(1) + bias
    return binary_cross_entropy_with_logits(score, labels, reduction="none")
