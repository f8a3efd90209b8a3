"""A probe's request score as a graph: what `probes.scoring` computes, for whoever follows its gradient."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from calibration.fitting.fitted import FittedProbe
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input, on_stream, together
from calibration.prompts.batching import Batch
from probes.head import HEADS
from probes.template import Template, Turn, whole

Activations = Mapping[int, torch.Tensor]
"""By block, `[B, T, W]`."""


@contextmanager
def activations_of(chat: ChatModel, probe: FittedProbe) -> Iterator[Activations]:
    """Fill the mapping, at each pass, with what `probe` reads, still part of the graph."""
    kept: dict[int, torch.Tensor] = {}
    visits = {layer: partial(kept.__setitem__, layer) for layer in probe.spec.layers}
    down = chat.down_projections() if probe.spec.site == "mlp_neurons" else None
    with together(
        on_input(down[layer], visit) if down else on_stream(chat.blocks, layer, visit)
        for layer, visit in visits.items()
    ):
        yield kept


def probe_score(
    probe: FittedProbe, activations: Activations, batch: Batch, template: Template | None = None
) -> torch.Tensor:
    """Return the scores `[B]` of each prompt's last turn, from the activations that the probe reads."""
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
        _output(probe, scores, _last_turn(template, ids[:length]), head)
        for scores, ids, length in zip(tokens, batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)
    ]
    return probe.spec.scale * torch.stack(numbers) + probe.spec.bias


def _last_turn(template: Template | None, token_ids: list[int]) -> Turn:
    return template.turns(token_ids)[-1] if template else whole(len(token_ids))


def _output(probe: FittedProbe, scores: torch.Tensor, turn: Turn, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what head and readout make of one turn `[]`, from its prompt's token scores `[T, C]`."""
    head, readout = HEADS[probe.spec.head], probe.spec.readout
    own = scores[list(readout.positions(turn))]
    if probe.spec.head_reads == "token":
        return readout.graph(torch.stack([head.graph(token, tensors) for token in own])[:, None])[0]
    return head.graph(readout.graph(own), tensors)
