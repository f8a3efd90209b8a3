"""The tap: what runs inside the model's graph.

Tensors in, tensors out, no host branch on a GPU, no allocation that anyone keeps: correct in eager mode, under
`torch.compile` and in CUDA graphs.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from vllm.utils.torch_utils import direct_register_custom_op

from probes.manifest import Gate
from probes.steering import Move, displacement

_LIBRARY = torch.library.Library("foreguard", "FRAGMENT")


_ONE_BY_ONE = 8
"""Up to so many columns a reduction each is faster than a matrix product (docs/decisions.md)."""


SILENT = 0x7FC0F06E
"""Bits of the NaN that stands where no tap has written yet: arithmetic gives other ones, so it is told from what was
read."""


_AT_REST = "foreguard_at_rest"


def project(hidden: torch.Tensor, residual: torch.Tensor | None, columns: torch.Tensor) -> torch.Tensor:
    """Return the products of the residual stream `hidden + residual` `[T, D]` with `columns` `[k, D]` (float32), `[T,
    k]`.

    No op of its own: the compiler fuses the sum into the reduction that normalises the same stream. An op that takes
    the stream as an argument would make the compiler write it out, rounded to the model's dtype, where it otherwise
    keeps more digits, and the guarded model's answers would not be the unguarded one's to the token.
    """
    stream = hidden if residual is None else hidden + residual
    exact = stream.float()
    if torch.compiler.is_compiling() and len(columns) <= _ONE_BY_ONE:
        return torch.stack([(exact * column).sum(1) for column in columns], dim=1)
    return exact @ columns.T


def write(part: torch.Tensor, parts: torch.Tensor, first: int) -> None:
    """Write one block's share of the token scores, `part` `[T, k]`, to `parts[:T, first : first + k]`.

    No two blocks share a column, so a block that does not write leaves what was there. On a CPU, where vLLM compiles
    the whole model at once, the compiler fuses the copy too, and nothing is called. On a GPU, where it cuts the graph
    into pieces, it gets an opaque call that mutates its buffer, like vLLM's own.
    """
    if parts.is_cpu:
        store(part, parts, first)
    else:
        torch.ops.foreguard.store(part, parts, first)


def store(part: torch.Tensor, parts: torch.Tensor, first: int) -> None:
    """Do what `write` says."""
    parts[: part.shape[0], first : first + part.shape[1]].copy_(part)


def silence(parts: torch.Tensor, num_rows: int | None = None) -> None:
    """Make the first `num_rows` rows of the float32 `parts`, or all of it, what no tap has written."""
    if parts.is_cpu:
        # For so little, PyTorch takes several times as long.
        parts.numpy().view(np.int32)[:num_rows] = SILENT
    else:
        parts[:num_rows].view(torch.int32).fill_(SILENT)


def silent(parts: torch.Tensor) -> torch.Tensor:
    """Return where in the float32 `parts` no tap has written since they were silenced, bool of the same shape."""
    return parts.view(torch.int32) == SILENT


def steer(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    coefficients: torch.Tensor,
    plan: str,
    tensors: list[torch.Tensor],
) -> None:
    """Add to row t of `hidden` `[T, D]`, in place, what the plan's moves displace the stream `hidden + residual` by.

    `coefficients` `[max_tokens, S]` are float32; `plan` and `tensors` are what `laid_out` made of the moves. A row
    whose coefficients are all zero keeps its bits.
    """
    # To look at them would take longer. A GPU adds zeros: a CUDA graph cannot branch.
    if coefficients.is_cpu and getattr(coefficients, _AT_REST, False):
        return
    strengths = coefficients[: hidden.shape[0]]
    stream = hidden if residual is None else hidden + residual
    delta = displacement(stream, strengths, _moves(plan, tensors))
    steered = (strengths != 0).any(1, keepdim=True)
    hidden.copy_(torch.where(steered, hidden + delta.to(hidden.dtype), hidden))


def note_at_rest(coefficients: torch.Tensor, *, at_rest: bool) -> None:
    """Note on `coefficients` whether all of them are zero. Where nothing is noted, `steer` adds up zeros."""
    setattr(coefficients, _AT_REST, at_rest)


def laid_out(moves: Sequence[Move]) -> tuple[str, list[torch.Tensor]]:
    """Return moves as an op can take them: a text that names them, and their tensors in a row."""
    plan = " ".join(f"{move.column}:{move.operator}:{move.gate or ''}:{len(move.tensors)}" for move in moves)
    return plan, [tensor for move in moves for tensor in move.tensors]


def _moves(plan: str, tensors: list[torch.Tensor]) -> list[Move]:
    rest = iter(tensors)
    return [
        Move(column, operator, gate, tuple(next(rest) for _ in range(count)))
        for column, operator, gate, count in _parsed(plan)
    ]


@cache
def _parsed(plan: str) -> tuple[tuple[int, str, Gate | None, int], ...]:
    gates: dict[str, Gate | None] = {"": None, "hard": "hard", "soft": "soft"}
    words = (word.split(":") for word in plan.split())
    return tuple((int(column), operator, gates[gate], int(count)) for column, operator, gate, count in words)


def _fake_store(part: torch.Tensor, parts: torch.Tensor, first: int) -> None:
    return None


def _fake_steer(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    coefficients: torch.Tensor,
    plan: str,
    tensors: list[torch.Tensor],
) -> None:
    return None


direct_register_custom_op("store", store, mutates_args=["parts"], fake_impl=_fake_store, target_lib=_LIBRARY)
direct_register_custom_op("steer", steer, mutates_args=["hidden"], fake_impl=_fake_steer, target_lib=_LIBRARY)
