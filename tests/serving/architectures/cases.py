"""The cases of the matrix: every architecture in both precisions, some compiled, and one in every quantisation."""

from dataclasses import dataclass

import torch

from tests.serving.architectures.configs import ARCHITECTURES, Architecture
from tests.serving.architectures.quantised import SCHEMES, Scheme


@dataclass(frozen=True, slots=True)
class Case:
    """One model, served once."""

    architecture: Architecture
    dtype: str
    compiled: bool = False
    scheme: Scheme | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Relative errors of a prompt at a block that are still agreement: the median of all, and the worst."""

    median: float
    worst: float


def _cases():
    for dtype in ("float32", "bfloat16"):
        for name, architecture in ARCHITECTURES.items():
            yield f"{name}-{dtype}", Case(architecture, dtype)
        for name in ("llama", "gemma3", "gpt-neox", "cohere"):
            yield f"{name}-{dtype}-compiled", Case(ARCHITECTURES[name], dtype, compiled=True)
        for name, scheme in SCHEMES.items():
            yield f"{name}-{dtype}", Case(ARCHITECTURES["llama"], dtype, scheme=scheme)


CASES = dict(_cases())
_NO_KERNEL = "Failed to find a kernel that can implement the WNA16 linear layer"
UNSERVED = {
    "qwen3-next-float32": "CPU GDN attention requires BF16",
    "jamba-float32": "did not pass vLLM's dummy run",  # unguarded it ends too: _C has no selective_scan_fwd
    "jamba-bfloat16": "did not pass vLLM's dummy run",
    "int8-w8a16-float32": _NO_KERNEL,
    "int8-w8a16-bfloat16": _NO_KERNEL,
    "int4-w4a16-float32": '"cpu_gemm_wna16" not',
    "gptq-float32": "torch.float32 is not supported for quantization method auto_gptq",
    "awq-float32": "torch.float32 is not supported for quantization method awq",
}
"""Cases that vLLM's CPU build does not run, by a part of the error that says so."""
if torch.cpu._is_amx_tile_supported():
    # There the fused experts' kernel is another one, for bfloat16 alone.
    UNSERVED |= dict.fromkeys(("deepseek-v2-float32", "deepseek-v3-float32"), "expect weight to be")


def tolerance(case):
    """Return what must hold for `case`."""
    if case.scheme and not case.scheme.exact:
        return Tolerance(median=0.05, worst=0.15)
    if case.dtype == "float32" and not case.scheme:
        # Rounding is below 1e-6; where the two compute a function by different approximations it is 1e-4.
        return Tolerance(median=5e-4, worst=2e-3)
    if getattr(case.architecture.config(), "num_experts_per_tok", 0):
        return Tolerance(
            median=0.02, worst=0.2
        )  # a router's near tie may fall the other way, and a short prompt show it
    return Tolerance(median=0.02, worst=0.05)
