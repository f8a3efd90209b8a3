"""A probe's request score as a graph: what `probes.scoring` computes, for whoever follows its gradient."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from calibration.fitting.fitted import FittedProbe
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input, on_output, together
from calibration.prompts.batching import Batch
from probes.head import HeadKind
from probes.readout import Readout

Activations = Mapping[int, torch.Tensor]
"""By block, `[B, T, W]`."""


@contextmanager
def activations_of(chat: ChatModel, probe: FittedProbe) -> Iterator[Activations]:
    """Fill the mapping, at each pass, with what `probe` reads, still part of the graph."""
    kept: dict[int, torch.Tensor] = {}
    reads_neurons = probe.spec.site == "mlp_neurons"
    on, modules = (on_input, chat.down_projections()) if reads_neurons else (on_output, chat.blocks)
    with together(on(modules[layer], partial(kept.__setitem__, layer)) for layer in probe.spec.layers):
        yield kept


def probe_score(probe: FittedProbe, activations: Activations, batch: Batch) -> torch.Tensor:
    """Return request scores `[B]` from the activations that the probe reads."""
    device = batch.mask.device
    tokens = torch.stack(
        [
            # OPT's MLP works on [B * T, W].
            activations[layer].float().reshape(*batch.input_ids.shape, -1) @ rows.to(device).T
            for layer, rows in zip(probe.spec.layers, probe.weight, strict=True)
        ]
    ).sum(dim=0)
    head = {name: tensor.to(device) for name, tensor in probe.head.items()}
    numbers = [
        _apply_head(probe.spec.head, _reduce(scores[:length], probe.spec.readout), head)
        for scores, length in zip(tokens, batch.lengths.tolist(), strict=True)
    ]
    return probe.spec.scale * torch.stack(numbers) + probe.spec.bias


def _reduce(scores: torch.Tensor, readout: Readout) -> torch.Tensor:
    """Return the values `[V]` of one prompt's token scores `[T, C]`."""
    if readout.kind == "last":
        return scores[max(len(scores) - 1 - readout.offset, 0)]
    if readout.kind == "mean":
        return scores.mean(dim=0)
    if readout.kind == "max":
        return scores.amax(dim=0)
    if readout.kind == "swim":
        return scores.unfold(0, min(readout.window, len(scores)), 1).mean(dim=2).amax(dim=0)
    if readout.kind == "softmax":
        return ((scores / readout.temperature).softmax(dim=0) * scores).sum(dim=0)
    if readout.kind == "attention":
        return (scores[:, ::2].softmax(dim=0) * scores[:, 1::2]).sum(dim=0)
    levels = [scores[0]]
    for score in scores[1:]:
        levels.append(levels[-1] + readout.alpha * (score - levels[-1]))
    return torch.stack(levels).amax(dim=0)


def _apply_head(kind: HeadKind, values: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if kind == "sum":
        return values.sum()
    if kind == "mlp":
        return (values + tensors["head_bias"]).relu() @ tensors["head_weight"]
    near, far = values - tensors["head_mean"], values - tensors["head_background_mean"]
    return near @ tensors["head_precision"] @ near - far @ tensors["head_background_precision"] @ far
