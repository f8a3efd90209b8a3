"""Transfers between host and device that wait for nothing that the device has yet to do."""

import numpy as np
import numpy.typing as npt
import torch


def index_on(device: torch.device, numbers: npt.ArrayLike) -> torch.Tensor:
    """Return int64 `numbers` on the device, where they may be used at once."""
    index = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
    # From memory that is not pinned the copy would wait.
    return (index.pin_memory() if device.type == "cuda" else index).to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> tuple[torch.Tensor, "torch.cuda.Event | None"]:
    """Start the copy of a tensor of its own memory to the host; the event, where there is one, happens when it is
    there.
    """
    if not tensor.is_cuda:
        return tensor, None
    arrived = torch.cuda.Event(blocking=True)
    copy = tensor.to("cpu", non_blocking=True)
    arrived.record()
    return copy, arrived
