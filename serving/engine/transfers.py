"""Transfers between host and device that wait for nothing that the device has yet to do."""

import numpy as np
import numpy.typing as npt
import torch


def index_on(device: torch.device, numbers: npt.ArrayLike) -> torch.Tensor:
    """Return int64 `numbers` on the device, where they may be used at once."""
    index = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
    # From memory that is not pinned the copy would wait.
    return (index.pin_memory() if device.type == "cuda" else index).to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], "torch.cuda.Event | None"]:
    """Start copies of tensors to the host; the event, where there is one, happens when they have all arrived."""
    if not tensors[0].is_cuda:
        return [tensor.clone() for tensor in tensors], None
    arrived = torch.cuda.Event(blocking=True)
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    arrived.record()
    return copies, arrived
