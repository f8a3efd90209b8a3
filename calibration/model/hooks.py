"""Hooks on a model's modules: what one is given or hands on, read or changed within a `with` block.

No other file registers any. A hook is gone when its block is left, whatever happened in it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from probes.errors import ModelError
from probes.manifest import EMBEDDINGS

Visit = Callable[[torch.Tensor], torch.Tensor | None]
"""Takes a tensor; returns what is to stand in its place, or None where it stays."""


def stream_of(output: Any) -> torch.Tensor | None:
    """Return the tensor that a module hands on: its output, or the first part of it."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, torch.Tensor) else None


@contextmanager
def on_output(module: nn.Module, visit: Visit) -> Iterator[None]:
    """Within the block, `visit` sees the tensor that `module` hands on. Raises `ModelError` at a pass without one."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        stream = stream_of(output)
        if stream is None:
            raise ModelError(
                f"a {type(module).__name__} gave no tensor", field="model", remedy="use a decoder-only language model"
            )
        changed = visit(stream)
        if changed is None:
            return output
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with _registered(module.register_forward_hook(hook)):
        yield


@contextmanager
def on_input(module: nn.Module, visit: Visit) -> Iterator[None]:
    """Within the block, `visit` sees what `module` is given: its first argument, or `hidden_states`."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = visit(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    with _registered(module.register_forward_pre_hook(hook, with_kwargs=True)):
        yield


def on_stream(blocks: Sequence[nn.Module], layer: int, visit: Visit) -> AbstractContextManager[None]:
    """Within the block, `visit` sees the residual stream behind a block, or at `EMBEDDINGS` before the first one."""
    return on_input(blocks[0], visit) if layer == EMBEDDINGS else on_output(blocks[layer], visit)


@contextmanager
def before_call(module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Within the block, `see` gets all arguments of each call of `module`."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args, kwargs)

    with _registered(module.register_forward_pre_hook(hook, with_kwargs=True)):
        yield


@contextmanager
def after_call(module: nn.Module, see: Callable[[nn.Module, tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """Within the block, `see` gets module, positional arguments and output of each call.

    What it returns replaces the output; None leaves it as it is.
    """
    with _registered(module.register_forward_hook(see)):
        yield


@contextmanager
def together(hooks: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    """Within the block, all of these hooks are there."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield


@contextmanager
def _registered(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
