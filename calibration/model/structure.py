"""Where a model keeps its decoder blocks, found by what they do in one short forward pass rather than by name."""

from collections import Counter
from typing import Any

import torch
from torch import nn

from calibration.model.hooks import after_call, stream_of, together
from probes.errors import ModelError

_PROBE_TOKENS = 5


def find_blocks(model: nn.Module, num_layers: int, hidden_size: int) -> list[nn.Module]:
    """Return the decoder blocks: the `nn.ModuleList` of `num_layers` modules that each give `[B, T, D]` once per pass.

    Where several qualify (a list inside each block, say), the one with the most parameters is it. Raises `ModelError`.
    """
    lists: list[nn.ModuleList] = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    calls = _count_outputs(model, [item for group in lists for item in group], (1, _PROBE_TOKENS, hidden_size))
    fitting = [group for group in lists if all(calls[item] == 1 for item in group)]
    if not fitting:
        raise ModelError(
            f"no list of {num_layers} decoder blocks that each give hidden states [B, T, {hidden_size}] once per pass",
            field="model",
            remedy="use a decoder-only language model whose blocks stand in one nn.ModuleList",
        )
    largest = max(fitting, key=lambda group: sum(parameter.numel() for parameter in group.parameters()))
    return list(largest)


def find_writers(model: nn.Module, blocks: list[nn.Module], hidden_size: int) -> list[nn.Module]:
    """Return the modules that write to the residual stream: every block's attention and MLP.

    These are a block's children that hold a matrix and give D numbers per token; norms hold vectors only. (OPT's MLP is
    two loose matrices that work on `[B * T, D]`; its second one is the writer.) Raises `ModelError`.
    """
    children = [child for block in blocks for child in block.children() if _holds_matrix(child)]
    calls = _count_outputs(model, children, (_PROBE_TOKENS, hidden_size))
    writers = [child for child in children if calls[child]]
    if len(writers) < len(blocks):
        raise ModelError(
            "the attention and MLP of each decoder block were not found",
            field="model",
            remedy="use a model whose blocks hold attention and MLP as modules",
        )
    return writers


def find_down_projections(model: nn.Module, blocks: list[nn.Module], hidden_size: int) -> list[nn.Module]:
    """Return each block's down-projection: the module whose input are the MLP's neurons.

    It is the last matrix to run in a block, and writes D numbers per token. Raises `ModelError` where a block has no
    such matrix, or hands it one input per expert.
    """
    order: list[tuple[nn.Module, int]] = []

    def note(ran: nn.Module, _args: Any, output: Any) -> None:
        order.append((ran, _width(output)))

    matrices = [module for block in blocks for module in block.modules() if is_matrix(module)]
    with together(after_call(module, note) for module in matrices):
        _probe_forward(model)
    return [_last_of(block, order, hidden_size) for block in blocks]


def neurons_of(down_projection: nn.Module, hidden_size: int) -> int:
    """Return how many neurons a down-projection reads: of its matrix's sides the one that is not D."""
    rows, columns = down_projection.weight.shape  # type: ignore[misc]  # any matrix module
    return int(columns if rows == hidden_size else rows)


def _last_of(block: nn.Module, order: list[tuple[nn.Module, int]], hidden_size: int) -> nn.Module:
    inside = set(block.modules())
    ran = [(module, width) for module, width in order if module in inside]
    # A router that ran last gives one number per expert, and not D.
    if not ran or ran[-1][1] != hidden_size or ran.count(ran[-1]) != 1:
        raise ModelError(
            "a decoder block has no single down-projection whose input are its neurons",
            field="model",
            remedy="leave out the methods that read neurons; a mixture of experts has none that every token passes",
        )
    return ran[-1][0]


def _width(output: Any) -> int:
    stream = stream_of(output)
    return 0 if stream is None else stream.shape[-1]


def is_matrix(module: nn.Module) -> bool:
    """Return whether a module is a matrix product and nothing else."""
    return not list(module.children()) and getattr(getattr(module, "weight", None), "ndim", 0) == 2


def _holds_matrix(module: nn.Module) -> bool:
    return any(tensor.ndim >= 2 for tensor in (*module.parameters(), *module.buffers()))


def _count_outputs(model: nn.Module, modules: list[nn.Module], shape: tuple[int, ...]) -> Counter[nn.Module]:
    """Run one short prompt; count how often each module gives a tensor of `shape`, leading ones disregarded."""
    calls: Counter[nn.Module] = Counter()

    def count(module: nn.Module, _args: Any, output: Any) -> None:
        stream = stream_of(output)
        found = () if stream is None else tuple(stream.shape)
        calls[module] += found in (shape, (1, *shape))

    with together(after_call(module, count) for module in modules):
        _probe_forward(model)
    return calls


def probe_tokens(model: nn.Module) -> torch.Tensor:
    """Return the short prompt `[1, T]` that a model is taken apart with."""
    device = next(model.parameters()).device
    return torch.arange(1, _PROBE_TOKENS + 1, device=device).unsqueeze(0)


def _probe_forward(model: nn.Module) -> None:
    with torch.inference_mode():
        model(input_ids=probe_tokens(model), use_cache=False)
