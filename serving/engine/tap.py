"""The tap: two custom ops that run inside the model's graph.

Tensors in, tensors out, no host branch on a GPU, no allocation that anyone keeps: correct in eager mode, under
`torch.compile` and in CUDA graphs. vLLM's compiler sees opaque calls that mutate their buffers, so it neither drops nor
reorders them.
"""

import torch
from vllm.utils.torch_utils import direct_register_custom_op

_LIBRARY = torch.library.Library("foreguard", "FRAGMENT")


def project(hidden: torch.Tensor, residual: torch.Tensor | None, matrix: torch.Tensor) -> torch.Tensor:
    """Return the residual stream `hidden + residual` `[T, D]` times `matrix` `[D, k]` (float32) as float32 `[T, k]`.

    No op of its own: the compiler fuses the sum into the reduction that normalises the same stream. An op that takes the
    stream as an argument would make the compiler write it out, rounded to the model's dtype, where it otherwise keeps
    more digits, and the guarded model's answers would not be the unguarded one's to the token.
    """
    stream = hidden if residual is None else hidden + residual
    if torch.compiler.is_compiling():
        return (stream.float().unsqueeze(-1) * matrix).sum(1)
    return stream.float() @ matrix


def store(part: torch.Tensor, parts: torch.Tensor, first: int, fired: torch.Tensor, index: int) -> None:
    """Write one block's share of the token scores, `part` `[T, k]`, to `parts[:T, first : first + k]`.

    No two blocks share a column, so a block that does not write leaves what was there. `fired[index]` becomes 1: proof
    that this tap ran.
    """
    parts[: part.shape[0], first : first + part.shape[1]].copy_(part)
    fired[index].fill_(1)


def steer(hidden: torch.Tensor, coefficients: torch.Tensor, vectors: torch.Tensor) -> None:
    """Add `coefficients[t] @ vectors` to row t of `hidden` `[T, D]`, in place.

    `coefficients` `[max_tokens, S]` and `vectors` `[S, D]` are float32. A row whose coefficients are all zero keeps its
    value (a negative zero may become a positive one, which no later sum can tell).
    """
    strengths = coefficients[: hidden.shape[0]]
    # On a CPU a look is cheaper than a product of zeros; on a GPU it would stop the stream, and a CUDA graph cannot branch.
    if strengths.is_cpu and not strengths.any():
        return
    hidden.add_((strengths @ vectors).to(hidden.dtype))


def _fake_store(part: torch.Tensor, parts: torch.Tensor, first: int, fired: torch.Tensor, index: int) -> None:
    return None


def _fake_steer(hidden: torch.Tensor, coefficients: torch.Tensor, vectors: torch.Tensor) -> None:
    return None


direct_register_custom_op("store", store, mutates_args=["parts", "fired"], fake_impl=_fake_store, target_lib=_LIBRARY)
direct_register_custom_op("steer", steer, mutates_args=["hidden"], fake_impl=_fake_steer, target_lib=_LIBRARY)
