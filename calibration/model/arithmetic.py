"""Which arithmetic computes a 16-bit model here: its own, or float32 from the same weights where that is faster.

CPUs without 16-bit matrix instructions multiply bfloat16 at a quarter of float32's speed or less, and several with them
are still faster in float32. A GPU is not, and computes as the model says.
"""

import os
import time
from functools import cache
from typing import Any

import torch
from torch import nn

from calibration.model.float32 import too_large
from probes.errors import CalibrationError

VARIABLE = "FOREGUARD_ARITHMETIC"
"""Environment variable: `auto` measures which is faster, `float32` and `native` decide."""
_CHOICES = ("auto", "float32", "native")
_CLEARLY = 1.25
"""How many times faster float32 must be: two runs on one machine then agree, and an even match saves the memory."""
_ROWS, _WIDTH, _TIMES = 128, 512, 5


def settle(model: Any, *, arithmetic: torch.dtype | None = None) -> nn.Module:
    """Return the model, its weights in `arithmetic`; without one, in float32 where a CPU computes it faster in that.

    A quantised model, and one whose float32 weights do not fit into free memory, keeps its own arithmetic.
    Raises `CalibrationError` where `FOREGUARD_ARITHMETIC` is none of its choices.
    """
    found: nn.Module = model.to(arithmetic or preferred(model))
    return found


def preferred(model: Any) -> torch.dtype:
    """Return the arithmetic that `settle` takes where it is not told one. Raises `CalibrationError`."""
    own, device = dtype_of(model), next(model.parameters()).device
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in _CHOICES:
        raise CalibrationError(f"{choice!r} is no arithmetic", field=VARIABLE, remedy=f"use {', '.join(_CHOICES)}")
    quantised = getattr(model.config, "quantization_config", None) is not None
    if choice == "native" or own == torch.float32 or device.type != "cpu" or quantised:
        return own
    if too_large(model) or not (choice == "float32" or float32_is_faster(own)):
        return own
    return torch.float32


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return what the model computes in."""
    return next(model.parameters()).dtype


def name_of(dtype: torch.dtype) -> str:
    """Return torch's name of a type, as manifests and commands have it: `float32`."""
    return str(dtype).removeprefix("torch.")


@cache
def float32_is_faster(narrow: torch.dtype) -> bool:
    """Return whether this CPU multiplies float32 matrices clearly faster than `narrow` ones: measured, in about 50
    ms.
    """
    return _seconds(torch.float32) * _CLEARLY < _seconds(narrow)


def _seconds(dtype: torch.dtype) -> float:
    rows, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(_TIMES):  # the first one may compile its kernel
            began = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            best = min(best, time.perf_counter() - began)
    return best
