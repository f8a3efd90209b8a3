"""The refusal metric as something to differentiate, and its gradient on the residual stream."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_output, on_stream, together
from calibration.prompts.batching import Batch


def refusal_log_odds(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Return `log P_R - log(1 - P_R)` `[B]` from next-token logits `[B, V]`: the refusal metric, without its
    epsilon.
    """
    refusing = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    refusing[list(tokens)] = True
    return logits[:, refusing].logsumexp(dim=-1) - logits[:, ~refusing].logsumexp(dim=-1)


@contextmanager
def differentiable(chat: ChatModel) -> Iterator[None]:
    """Within the block, forward passes outside inference mode make a graph that begins at the embeddings."""
    model: Any = chat.model
    begin = on_output(model.get_input_embeddings(), lambda embedded: embedded.detach().requires_grad_())
    with begin, torch.enable_grad():
        yield


def stream_gradients(
    chat: ChatModel, batch: Batch, layers: Sequence[int], tokens: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Return the gradient of the refusal metric on `resid_post` by block: float32 `[B, T, D]`, zero on padding."""
    kept: dict[int, torch.Tensor] = {}

    with together(on_stream(chat.blocks, layer, partial(kept.__setitem__, layer)) for layer in layers):
        with differentiable(chat):
            metric = refusal_log_odds(chat.differentiable_logits(batch), tokens).sum()
        found = torch.autograd.grad(metric, [kept[layer] for layer in layers])
    return dict(zip(layers, (gradient.float() for gradient in found), strict=True))
