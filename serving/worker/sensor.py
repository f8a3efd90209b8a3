"""The sensor: puts taps on those of a served model's decoder blocks that the artifact reads or steers.

Installed after the weights are loaded and before anything is compiled, so that the taps become part of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.utils import PPMissingLayer

from probes.manifest import EMBEDDINGS
from probes.scoring import ProbeBank, Tap
from probes.steering import Move, SteeringBank
from serving.worker.decoder import Decoder, DryRun, Entry, entry_of, find_decoder, token_rows
from serving.worker.down_projection import down_projection, entrance, own_rows
from serving.worker.tap import laid_out, project, write  # importing it registers the ops


@dataclass(frozen=True, slots=True)
class Sensor:
    """The persistent buffers that the taps write and read."""

    parts: torch.Tensor
    """Shares of the token scores in the last forward pass, float32 `[max_tokens, P]`: one column for each channel at
    each tap that it reads, in the order of the bank (`ProbeBank.add_up`)."""
    split: torch.Tensor
    """int64: columns that hold what this rank's slice of the neurons gives; the sum over the ranks is the share."""
    elsewhere: torch.Tensor
    """int64: columns whose tapped block is on another pipeline stage."""
    coefficients: torch.Tensor
    """Steering of the next forward pass, float32 `[max_tokens, S]`."""


def install(
    model: nn.Module, num_layers: int, max_tokens: int, probes: ProbeBank, steering: SteeringBank, dry_run: DryRun
) -> Sensor:
    """Tap `model`'s decoder blocks. Raises `ModelError` where they, or the neurons that are read, cannot be found."""
    decoder = find_decoder(model, num_layers, dry_run)
    blocks = decoder.blocks
    device = next(model.parameters()).device
    columns = _columns(probes)
    here = {tap: reading for tap, reading in probes.readings.items() if _is_here(blocks[max(tap.layer, 0)])}
    projections = {
        tap: down_projection(blocks[tap.layer], tap.layer, len(reading.matrix))
        for tap, reading in here.items()
        if tap.site == "mlp_neurons"
    }
    split = [column for tap, each in projections.items() if each.tp_size > 1 for column in columns[tap]]
    elsewhere = [column for tap, own in columns.items() if tap not in here for column in own]
    sensor = Sensor(
        parts=torch.zeros(max_tokens, sum(map(len, columns.values())), device=device),
        split=torch.tensor(split, dtype=torch.int64, device=device),
        elsewhere=torch.tensor(elsewhere, dtype=torch.int64, device=device),
        coefficients=torch.zeros(max_tokens, max(len(steering.names), 1), device=device),
    )
    for tap, reading in here.items():
        first = columns[tap].start
        if tap in projections:
            _install_neurons(blocks[tap.layer], projections[tap], reading.matrix, sensor, first)
        elif tap.layer == EMBEDDINGS:
            _install_entry(decoder, entry_of(model, decoder, dry_run), reading.matrix, sensor, first)
        else:
            _install_read(decoder, tap.layer, reading.matrix, sensor, first)
    for layer, moves in steering.moves.items():
        if _is_here(blocks[layer]):
            _install_steer(decoder, layer, moves, sensor)
    return sensor


def _is_here(block: nn.Module) -> bool:
    """Whether this pipeline stage computes the block."""
    return not isinstance(block, PPMissingLayer)


def _columns(probes: ProbeBank) -> dict[Tap, range]:
    columns: dict[Tap, range] = {}
    first = 0
    for tap, reading in probes.readings.items():
        columns[tap] = range(first, first + len(reading.channels))
        first = columns[tap].stop
    return columns


def _install_read(decoder: Decoder, layer: int, matrix: torch.Tensor, sensor: Sensor, first: int) -> None:
    block = decoder.blocks[layer]
    _register(block, matrix, sensor)

    def read(module: Any, _args: Any, output: Any) -> None:
        write(project(*decoder.parts(output), module.foreguard_matrix), module.foreguard_parts, first)

    block.register_forward_hook(read)


def _install_entry(decoder: Decoder, entry: Entry, matrix: torch.Tensor, sensor: Sensor, first: int) -> None:
    # Under a name of its own: what is read behind the first block has a matrix there, too.
    _register(decoder.blocks[0], matrix, sensor, "foreguard_entry_matrix")

    def read(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = token_rows(args[entry] if isinstance(entry, int) else kwargs[entry])
        write(project(stream, None, module.foreguard_entry_matrix), module.foreguard_parts, first)

    decoder.blocks[0].register_forward_pre_hook(read, with_kwargs=True)


def _install_neurons(
    block: nn.Module, projection: RowParallelLinear, matrix: torch.Tensor, sensor: Sensor, first: int
) -> None:
    called = entrance(block, projection)
    _register(called, own_rows(projection, matrix), sensor)

    def read(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        write(project(token_rows(args[0]), None, module.foreguard_matrix), module.foreguard_parts, first)

    called.register_forward_pre_hook(read)


def _register(module: nn.Module, matrix: torch.Tensor, sensor: Sensor, name: str = "foreguard_matrix") -> None:
    module.register_buffer(name, matrix.T.to(sensor.parts.device).contiguous(), persistent=False)
    module.register_buffer("foreguard_parts", sensor.parts, persistent=False)


def _install_steer(decoder: Decoder, layer: int, moves: Sequence[Move], sensor: Sensor) -> None:
    block = decoder.blocks[layer]
    plan, tensors = laid_out(moves)
    names = [f"foreguard_steering_{index}" for index in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        block.register_buffer(name, tensor.to(sensor.coefficients.device).contiguous(), persistent=False)
    block.register_buffer("foreguard_coefficients", sensor.coefficients, persistent=False)
    # What reads no stream is given none: the graph of a plain addition stays the one whose answers were compared.
    reads = any(move.reads for move in moves)

    def steer(module: Any, _args: Any, output: Any) -> None:
        hidden, residual = decoder.parts(output)
        own = [getattr(module, name) for name in names]
        torch.ops.foreguard.steer(hidden, residual if reads else None, module.foreguard_coefficients, plan, own)

    block.register_forward_hook(steer)
