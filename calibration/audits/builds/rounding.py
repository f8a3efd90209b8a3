"""The noise floor: the same model with every weight moved by as much as saving it in bfloat16 might."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from calibration.model.chat_model import ChatModel

ONE_UNIT = 2.0**-7
"""bfloat16's spacing, relative to the value, at its widest. Rounding moves a weight by half of it at most."""


@contextmanager
def rounded_anew(chat: ChatModel, seed: int) -> Iterator[None]:
    """Within the block, every weight of `chat` is moved at random by one unit in bfloat16's last place, or not at
    all.
    """
    # On the weights' own device, so that no model is too large for it.
    generators = {device: torch.Generator(device).manual_seed(seed) for device in {chat.device}}
    kept = [(parameter, parameter.data) for parameter in chat.model.parameters() if parameter.is_floating_point()]
    try:
        for parameter, exact in kept:
            steps = torch.randint(-1, 2, exact.shape, generator=generators.get(exact.device), device=exact.device)
            parameter.data = exact + exact.abs() * ONE_UNIT * steps.to(exact.dtype)
        yield
    finally:
        for parameter, exact in kept:
            parameter.data = exact
