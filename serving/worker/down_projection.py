"""Finds the matrix of a served decoder block whose input are the MLP's neurons: site `mlp_neurons`.

It touches, of vLLM: `RowParallelLinear` (`input_size`, `tp_rank`, `tp_size`, `input_is_parallel`),
`AttentionLayerBase`, `MoERunner`, and of `vllm/model_executor/layers/fusion/quant_activation.py` `get_input_quant_key`
(from 0.30; before, `input_quant_key` of a layer). Under tensor parallelism each rank holds a slice of the neurons, in
the order of ranks; what a rank reads is its share of a sum.
"""

import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.fused_moe import MoERunner
from vllm.model_executor.layers.fusion import quant_activation
from vllm.model_executor.layers.linear import RowParallelLinear

from probes.errors import ModelError

_LEAVE_OUT = "serve an artifact without probes on neurons; docs/artifact.md says which sites there are"


def down_projection(block: nn.Module, layer: int, width: int) -> RowParallelLinear:
    """Return the down-projection of decoder block `layer`, which reads `width` neurons. Raises `ModelError`.

    It is the one row-parallel matrix of that width outside the block's attention: the output projection of attention is
    row-parallel too, and may be as wide.
    """
    if any(isinstance(module, MoERunner) for module in block.modules()):
        raise _no_neurons(layer, "is a mixture of experts: it has no neurons that every token passes")
    outside = [child for child in block.children() if not _holds(child, AttentionLayerBase)]
    matrices = [module for child in outside for module in child.modules() if isinstance(module, RowParallelLinear)]
    fitting = [matrix for matrix in matrices if matrix.input_size == width]
    if len(fitting) != 1:
        found = ", ".join(str(matrix.input_size) for matrix in matrices) or "none"
        raise _no_neurons(layer, f"has no single down-projection of {width} neurons (row-parallel matrices: {found})")
    [found_one] = fitting
    if _takes_quantised(found_one) or not (found_one.input_is_parallel or found_one.tp_size == 1):
        raise _no_neurons(layer, "hands its neurons on quantised, or undivided to all ranks")
    return found_one


def entrance(block: nn.Module, projection: RowParallelLinear) -> nn.Module:
    """Return the module that is called with the neurons: the projection, or what vLLM wraps around it for LoRA
    adapters.
    """
    wrappers = (module for module in block.modules() if module._modules.get("base_layer") is projection)
    return next(wrappers, projection)


def own_rows(projection: RowParallelLinear, matrix: torch.Tensor) -> torch.Tensor:
    """Return the rows of `matrix` `[W, k]` for the neurons that this rank holds."""
    own: torch.Tensor = matrix.chunk(projection.tp_size)[projection.tp_rank]
    return own


def _holds(module: nn.Module, kind: type) -> bool:
    return any(isinstance(each, kind) for each in module.modules())


def _no_neurons(layer: int, what: str) -> ModelError:
    return ModelError(f"decoder block {layer} {what}", field="site", remedy=_LEAVE_OUT)


def _takes_quantised(layer: nn.Module) -> bool:
    """Return whether what comes into a linear layer may be quantised already."""
    if hasattr(quant_activation, "get_input_quant_key"):
        return quant_activation.get_input_quant_key(layer) is not None
    return getattr(layer, "input_quant_key", None) is not None
