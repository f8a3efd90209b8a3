"""Taps: what a bank's probes need of one forward pass of a batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from calibration.model.chat_model import ChatModel
from calibration.model.structure import neurons_of
from calibration.prompts.batching import Batch
from calibration.recording.activations import read_blocks, read_neurons
from probes.errors import ModelError
from probes.scoring import ProbeBank, Tap


def find_projections(chat: ChatModel, bank: ProbeBank) -> dict[int, nn.Module]:
    """Return the down-projections by layer whose neurons the bank reads.

    Raises `ModelError` where their number differs.
    """
    widths = {
        layer: (probe.name, probe.width)
        for probe in bank.probes
        if probe.site == "mlp_neurons"
        for layer in probe.layers
    }
    if not widths:
        return {}
    down = chat.down_projections()
    for layer, (name, width) in widths.items():
        found = neurons_of(down[layer], chat.hidden_size)
        if found != width:
            raise ModelError(
                f"block {layer} has {found} neurons, not {width}",
                field=f"probes.{name}.width",
                remedy="use the model that the probe was fitted on",
            )
    return {layer: down[layer] for layer in widths}


@contextmanager
def read_taps(
    chat: ChatModel, bank: ProbeBank, projections: Mapping[int, nn.Module], batch: Batch
) -> Iterator[dict[Tap, torch.Tensor]]:
    """Fill the dictionary, when the block is left, with the activations `[B, T, W]` of one pass at the bank's taps."""
    shape = batch.input_ids.shape
    layers = [tap.layer for tap in bank.readings if tap.site == "resid_post"]
    read: dict[Tap, torch.Tensor] = {}

    def keep(activations: torch.Tensor) -> torch.Tensor:
        return activations.reshape(*shape, activations.shape[-1]).cpu()

    with read_blocks(chat, layers, keep) as streams, read_neurons(projections, keep) as neurons:
        yield read
    read.update({Tap("resid_post", layer): stream for layer, stream in streams.items()})
    read.update({Tap("mlp_neurons", layer): values for layer, values in neurons.items()})
