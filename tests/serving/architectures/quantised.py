"""Quantised checkpoints, written by hand: integers, scales and the config that names them, as their formats have them.

Beside each stands what its integers stand for: the model that Transformers computes with.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.serving.architectures import checkpoint

_GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to write a matrix in few bits."""

    title: str
    config: dict
    write: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
    """From a matrix `[out, in]` to its tensors, named as in the checkpoint, and what they stand for `[out, in]`."""
    exact: bool
    """Whether the activations stay as they are, so that only rounding tells the served model from the reference."""


def save(config, folder, dtype, scheme):
    """Write a model of `config` to `folder` with its blocks' matrices in `scheme`; return the model that this stands
    for.
    """
    checkpoint.save(config, folder, dtype)
    model, tensors = checkpoint.load(folder, dtype), load_file(folder / "model.safetensors")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            written, stands_for = scheme.write(tensors.pop(f"{name}.weight").float())
            tensors |= {f"{name}.{key}": _in(dtype, tensor) for key, tensor in written.items()}
            module.weight.data = stands_for.to(module.weight.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"quantization_config": scheme.config}))
    return model


def _in(dtype, tensor):
    return tensor.to(getattr(torch, dtype)).contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _rounded(weight, bits, group):
    """Return symmetric integers `[out, in]` and their scales `[out, in / group]`, in a precision that bfloat16
    holds.
    """
    groups = weight.view(len(weight), -1, group)
    top = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(-1, keepdim=True) / top).bfloat16().float()
    integers = (groups / scale).round().clamp(-top - 1, top)
    return integers.view_as(weight).int(), scale.squeeze(-1), (integers * scale).view_as(weight)


def _packed(values, dim, bits=4, order=None):
    """Pack unsigned integers along `dim` into int32, the lowest bits first; place n holds the `order[n]`-th of a
    word's.
    """
    each = 32 // bits
    apart = values.movedim(dim, -1).unflatten(-1, (-1, each))[..., list(order or range(each))].long()
    words = (apart << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int().movedim(-1, dim)


def _int8(weight):
    integers, scale, stands_for = _rounded(weight, 8, weight.shape[1])
    return {"weight": integers.to(torch.int8), "weight_scale": scale}, stands_for


def _packed_by_channel(weight):
    integers, scale, stands_for = _rounded(weight, 8, weight.shape[1])
    return _words(integers + 128, 8, scale, weight), stands_for


def _packed_by_group(weight):
    integers, scale, stands_for = _rounded(weight, 4, _GROUP)
    return _words(integers + 8, 4, scale, weight), stands_for


def _words(integers, bits, scale, weight):
    shape = torch.tensor(weight.shape)
    return {"weight_packed": _packed(integers, 1, bits), "weight_scale": scale, "weight_shape": shape}


def _gptq(weight):
    integers, scale, stands_for = _rounded(weight, 4, _GROUP)
    zeros = torch.full((weight.shape[1] // _GROUP, weight.shape[0]), 7)  # GPTQ writes them less one
    groups = torch.arange(weight.shape[1], dtype=torch.int32) // _GROUP
    return {
        "qweight": _packed(integers.T + 8, 0), "qzeros": _packed(zeros, 1), "scales": scale.T, "g_idx": groups
    }, stands_for  # fmt: skip


def _awq(weight):
    groups = weight.view(len(weight), -1, _GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).bfloat16().float()
    zeros = (-low / scale).round().clamp(0, 15)
    integers = (groups / scale + zeros).round().clamp(0, 15)
    stands_for = ((integers - zeros) * scale).view_as(weight)
    return {
        "qweight": _packed(integers.view_as(weight).T, 1, order=_AWQ_ORDER),
        "qzeros": _packed(zeros.squeeze(-1).T, 1, order=_AWQ_ORDER),
        "scales": scale.squeeze(-1).T,
    }, stands_for


def _compressed(layout, weights, activations=None):
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, "dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {**group, "input_activations": activations}},
    }  # fmt: skip


_BY_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_BY_CHANNEL = {"num_bits": 8, "strategy": "channel"}
_BY_GROUP = {"num_bits": 4, "strategy": "group", "group_size": _GROUP}

SCHEMES = {
    "int8-w8a8": Scheme(
        "compressed-tensors int8, weights and activations",
        _compressed("int-quantized", _BY_CHANNEL, _BY_TOKEN),
        _int8,
        exact=False,
    ),
    "int8-w8a16": Scheme(
        "compressed-tensors int8, weights",
        _compressed("pack-quantized", _BY_CHANNEL),
        _packed_by_channel,
        exact=True,
    ),
    "int4-w4a16": Scheme(
        "compressed-tensors int4, weights", _compressed("pack-quantized", _BY_GROUP), _packed_by_group, exact=True
    ),
    "gptq": Scheme(
        "GPTQ",
        {"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "desc_act": False, "sym": True, "lm_head": False},
        _gptq,
        exact=True,
    ),
    "awq": Scheme(
        "AWQ",
        {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True, "version": "gemm"},
        _awq,
        exact=True,
    ),
}
