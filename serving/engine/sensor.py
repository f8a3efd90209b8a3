"""The sensor: finds a served model's decoder blocks and puts taps on those that the artifact reads or steers.

Installed after the weights are loaded and before anything is compiled, so that the taps become part of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.utils import PPMissingLayer

from probes.errors import ModelError
from probes.scoring import ProbeBank, Tap
from probes.steering import Move, SteeringBank
from serving.engine.down_projection import down_projection, own_rows
from serving.engine.tap import laid_out, project  # importing it registers the ops


@dataclass(frozen=True, slots=True)
class Sensor:
    """The persistent buffers that the taps write and read."""

    parts: torch.Tensor
    """Shares of the token scores in the last forward pass, float32 `[max_tokens, P]`: one column for each channel at each
    tap that it reads, in the order of the bank (`ProbeBank.add_up`)."""
    split: torch.Tensor
    """int64: columns that hold what this rank's slice of the neurons gives; the sum over the ranks is the share."""
    elsewhere: torch.Tensor
    """int64: columns whose tapped block is on another pipeline stage."""
    fired: torch.Tensor
    """int32 `[number of taps]`: 1 where the tap ran since the last reset."""
    coefficients: torch.Tensor
    """Steering of the next forward pass, float32 `[max_tokens, S]`."""


def install(model: nn.Module, num_layers: int, max_tokens: int, probes: ProbeBank, steering: SteeringBank) -> Sensor:
    """Tap `model`'s decoder blocks. Raises `ModelError` where they, or the neurons that are read, cannot be found."""
    blocks = decoder_blocks(model, num_layers)
    device = next(model.parameters()).device
    columns = _columns(probes)
    here = {tap: reading for tap, reading in probes.readings.items() if _is_here(blocks[tap.layer])}
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
        fired=torch.zeros(len(here), dtype=torch.int32, device=device),
        coefficients=torch.zeros(max_tokens, max(len(steering.names), 1), device=device),
    )
    for index, (tap, reading) in enumerate(here.items()):
        first = columns[tap].start
        if tap in projections:
            _install_neurons(projections[tap], reading.matrix, sensor, first, index)
        else:
            _install_read(blocks[tap.layer], reading.matrix, sensor, first, index)
    for layer, moves in steering.moves.items():
        if _is_here(blocks[layer]):
            _install_steer(blocks[layer], moves, sensor)
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


def decoder_blocks(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """Return the model's decoder blocks, found by structure: the heaviest `ModuleList` of `num_layers` items."""
    candidates = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not candidates:
        raise ModelError(
            f"{type(model).__name__} has no list of {num_layers} decoder blocks",
            field="model",
            remedy="serve a decoder-only language model; docs/compatibility.md lists those that were tried",
        )
    return max(candidates, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


def _install_read(block: nn.Module, matrix: torch.Tensor, sensor: Sensor, first: int, index: int) -> None:
    _register(block, matrix, sensor)

    def read(module: Any, _args: Any, output: Any) -> None:
        part = project(*split_stream(output), module.foreguard_matrix)
        torch.ops.foreguard.store(part, module.foreguard_parts, first, module.foreguard_fired, index)

    block.register_forward_hook(read)


def _install_neurons(
    projection: RowParallelLinear, matrix: torch.Tensor, sensor: Sensor, first: int, index: int
) -> None:
    _register(projection, own_rows(projection, matrix), sensor)

    def read(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        part = project(args[0], None, module.foreguard_matrix)
        torch.ops.foreguard.store(part, module.foreguard_parts, first, module.foreguard_fired, index)

    projection.register_forward_pre_hook(read)


def _register(module: nn.Module, matrix: torch.Tensor, sensor: Sensor) -> None:
    module.register_buffer("foreguard_matrix", matrix.to(sensor.parts.device).contiguous(), persistent=False)
    module.register_buffer("foreguard_parts", sensor.parts, persistent=False)
    module.register_buffer("foreguard_fired", sensor.fired, persistent=False)


def _install_steer(block: nn.Module, moves: Sequence[Move], sensor: Sensor) -> None:
    plan, tensors = laid_out(moves)
    names = [f"foreguard_steering_{index}" for index in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        block.register_buffer(name, tensor.to(sensor.coefficients.device).contiguous(), persistent=False)
    block.register_buffer("foreguard_coefficients", sensor.coefficients, persistent=False)
    # What reads no stream is given none: the graph of a plain addition stays the one whose answers were compared.
    reads = any(move.reads for move in moves)

    def steer(module: Any, _args: Any, output: Any) -> None:
        hidden, residual = split_stream(output)
        own = [getattr(module, name) for name in names]
        torch.ops.foreguard.steer(hidden, residual if reads else None, module.foreguard_coefficients, plan, own)

    block.register_forward_hook(steer)


def split_stream(output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a block's output as (hidden, residual): most vLLM blocks return the two apart, some return their sum."""
    if isinstance(output, torch.Tensor):
        return output, None
    hidden, residual = output[0], output[1] if len(output) > 1 else None
    return hidden, residual if isinstance(residual, torch.Tensor) and residual.shape == hidden.shape else None
