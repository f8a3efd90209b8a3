"""The tap: two custom ops that run inside the model's graph.

Tensors in, tensors out, no host branch, no allocation that anyone keeps: correct in eager mode, under `torch.compile` and
in CUDA graphs. vLLM's compiler sees opaque calls that mutate their buffers, so it neither drops nor reorders them.
"""

import torch
from vllm.utils.torch_utils import direct_register_custom_op

_LIBRARY = torch.library.Library("foreguard", "FRAGMENT")


def read(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    matrix: torch.Tensor,
    scores: torch.Tensor,
    fired: torch.Tensor,
    index: int,
) -> None:
    """Add one block's part of the token scores.

    The residual stream after the block is `hidden + residual` `[T, D]`, rounded to the model's dtype as the next block sees
    it. Its product with `matrix` `[D, K]` (float32) is written to the first T rows of `scores` by the first tapped block
    (`index` 0) and added by the others. `fired[index]` becomes 1: proof that the tap ran in this step.
    """
    stream = hidden if residual is None else hidden + residual
    rows = scores[: stream.shape[0]]
    # With beta 0 the old rows are ignored, NaN included; unlike `out=`, a buffer too small is an error.
    rows.addmm_(stream.float(), matrix, beta=0 if index == 0 else 1)
    fired[index] = 1


def steer(hidden: torch.Tensor, coefficients: torch.Tensor, vectors: torch.Tensor) -> None:
    """Add `coefficients[t] @ vectors` to row t of `hidden` `[T, D]`, in place.

    `coefficients` `[max_tokens, S]` and `vectors` `[S, D]` are float32. A row whose coefficients are all zero keeps its
    value (a negative zero becomes a positive one, which no later sum can tell).
    """
    hidden.add_((coefficients[: hidden.shape[0]] @ vectors).to(hidden.dtype))


def _fake_read(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    matrix: torch.Tensor,
    scores: torch.Tensor,
    fired: torch.Tensor,
    index: int,
) -> None:
    return None


def _fake_steer(hidden: torch.Tensor, coefficients: torch.Tensor, vectors: torch.Tensor) -> None:
    return None


direct_register_custom_op("read", read, mutates_args=["scores", "fired"], fake_impl=_fake_read, target_lib=_LIBRARY)
direct_register_custom_op("steer", steer, mutates_args=["hidden"], fake_impl=_fake_steer, target_lib=_LIBRARY)
