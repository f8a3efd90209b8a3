"""Interventions: the model with a direction taken out of its residual stream, or with a vector added to it.

As in arXiv 2406.11717, section 2.4. These are for measuring only; the served model is never run under ablation.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from calibration.model import ChatModel

_Edit = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def ablated(chat: ChatModel, direction: torch.Tensor) -> Iterator[None]:
    """Within the block, the model runs without `direction` `[D]`, which need not be normalised.

    `x - (x . d) d`, with unit d, replaces x at every block's input and every attention and MLP output, all positions.
    """
    unit = torch.nn.functional.normalize(direction.float().to(chat.device), dim=0)

    def remove(stream: torch.Tensor) -> torch.Tensor:
        exact = stream.float()
        clean: torch.Tensor = exact - (exact @ unit).unsqueeze(-1) * unit
        return clean.to(stream.dtype)

    with ExitStack() as stack:
        for block in chat.blocks:
            stack.enter_context(_hooked(_edit_input(block, remove)))
        for writer in chat.writers:
            stack.enter_context(_hooked(_edit_output(writer, remove)))
        yield


@contextmanager
def added(chat: ChatModel, layer: int, vector: torch.Tensor, *, only: torch.Tensor | None = None) -> Iterator[None]:
    """Within the block, `vector` `[D]` is added after block `layer`: at all positions, or at `only` `[B]`, one per prompt."""
    shift = vector.float().to(chat.device)

    def add(stream: torch.Tensor) -> torch.Tensor:
        if only is None:
            return (stream.float() + shift).to(stream.dtype)
        edited = stream.clone()
        rows = torch.arange(len(only), device=stream.device)
        edited[rows, only] = (stream[rows, only].float() + shift).to(stream.dtype)
        return edited

    with _hooked(_edit_output(chat.blocks[layer], add)):
        yield


@contextmanager
def recentred(
    chat: ChatModel, layer: int, direction: torch.Tensor, positions: torch.Tensor, levels: torch.Tensor
) -> Iterator[None]:
    """Within the block, the projection on `direction` `[D]` after block `layer` is `levels` `[P]` at `positions` `[B, P]`.

    Affine ablation (arXiv 2411.09003): where harmless prompts do not project to zero, removing the component altogether
    would move them too; setting it to their mean leaves them where they are.
    """
    unit = torch.nn.functional.normalize(direction.float().to(chat.device), dim=0)

    def recentre(stream: torch.Tensor) -> torch.Tensor:
        edited = stream.clone()
        rows = torch.arange(len(positions), device=stream.device).unsqueeze(1)
        exact = stream[rows, positions].float()
        gap = levels.to(chat.device) - exact @ unit
        edited[rows, positions] = (exact + gap.unsqueeze(-1) * unit).to(stream.dtype)
        return edited

    with _hooked(_edit_output(chat.blocks[layer], recentre)):
        yield


@contextmanager
def grafted(chat: ChatModel, layer: int, states: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Within the block, each prompt's stream after block `layer` is `states` `[B, D]` at its own of `positions` `[B]`."""

    def graft(stream: torch.Tensor) -> torch.Tensor:
        edited = stream.clone()
        edited[torch.arange(len(positions), device=stream.device), positions] = states.to(stream)
        return edited

    with _hooked(_edit_output(chat.blocks[layer], graft)):
        yield


@contextmanager
def _hooked(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _edit_output(module: nn.Module, edit: _Edit) -> RemovableHandle:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return module.register_forward_hook(hook)


def _edit_input(module: nn.Module, edit: _Edit) -> RemovableHandle:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)
