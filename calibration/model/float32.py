"""The model in float32 for as long as gradients are taken, and then exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

_HEADROOM = 1.5
"""Memory that the passes themselves take, as a multiple of the weights."""
_MEMINFO = Path("/proc/meminfo")


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within the block, every parameter and buffer is float32; afterwards each is the very tensor that it was before.

    Gradients of bfloat16 carry three digits, which is too few for the difference of two runs. No second model is
    loaded: what is held beside the original is one float32 copy of its weights.
    """
    held = [*model.parameters(), *model.buffers()]
    narrow = [(tensor, tensor.data) for tensor in held if tensor.is_floating_point() and tensor.dtype != torch.float32]
    for tensor, data in narrow:
        tensor.data = data.float()
    try:
        yield
    finally:
        for tensor, data in narrow:
            tensor.data = data


def is_narrow(model: nn.Module) -> bool:
    """Return whether the model computes in less than float32."""
    return next(model.parameters()).dtype != torch.float32


def too_large(model: nn.Module) -> str | None:
    """Return why a float32 copy of the weights does not fit into what memory is free, or nothing where it does."""
    tensors = [*model.parameters(), *model.buffers()]
    needed = 4 * sum(
        tensor.numel() for tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float32
    )
    free = _free_bytes(next(model.parameters()).device)
    if free is None or needed * _HEADROOM < free:
        return None
    return f"float32 weights take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
