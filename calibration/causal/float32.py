"""The model in float32 for as long as gradients are taken, and then exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within the block, every parameter and buffer is float32; afterwards each is the very tensor that it was before.

    Gradients of bfloat16 carry three digits, which is too few for the difference of two runs. No second model is loaded:
    what is held beside the original is one float32 copy of its weights.
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
