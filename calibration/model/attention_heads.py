"""Attention heads: where a model keeps them, found by what depends on what, and the model with some of them taken out.

In one pass every matrix gives noise instead of its output; gradients then say which numbers each head reads. No table
of names and no layout of fused projections is needed, and the weights' own values play no part.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import after_call, on_input, on_output, stream_of, together
from calibration.model.structure import is_matrix, probe_tokens
from probes.errors import ModelError

Removal = Literal["undifferentiated", "silenced"]
"""How a head is taken out (arXiv 2410.13708, section 3.1): its queries are zero, so that it attends to all earlier
positions alike; or its output is zero. The paper scales by 1e-5; zero is the limit, and a norm between the query's
projection and the attention would undo any other factor."""

Columns = dict[nn.Module, torch.Tensor]
"""Of each matrix the numbers of its output, int64 `[n]`, that are meant."""


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """Head `index` of block `block`; under grouped-query attention a head is a query head."""

    block: int
    index: int

    def __str__(self) -> str:
        return f"{self.block}.{self.index}"


@dataclass(frozen=True, slots=True)
class Attention:
    """One block's attention with H heads."""

    output: nn.Module
    """The matrix whose input are the heads' outputs, side by side."""
    width: int
    """Numbers in one head's output."""
    queries: tuple[Columns, ...]
    """What gives each head its queries."""
    sources: tuple[Columns, ...]
    """All that each head reads: queries, and keys and values, which heads may share."""

    def columns(self, index: int) -> slice:
        """Where head `index` stands in the input of `output`."""
        return slice(index * self.width, (index + 1) * self.width)


@dataclass(frozen=True, slots=True)
class _Run:
    """A matrix that ran on noise: what went in, and the noise that came out for its output."""

    module: nn.Module
    given: torch.Tensor
    noise: torch.Tensor


def find_attentions(chat: ChatModel) -> tuple[Attention, ...]:
    """Return every block's attention `[L]`. Raises `ModelError` where a block does not have one with separate heads."""
    config: Any = chat.model.config
    num_heads = config.get_text_config().num_attention_heads
    with torch.enable_grad():
        return tuple(_attention(runs, num_heads, f"block {block}") for block, runs in enumerate(_run_on_noise(chat)))


def all_heads(attentions: Sequence[Attention]) -> list[Head]:
    """Return every head, block by block."""
    return [Head(block, index) for block, each in enumerate(attentions) for index in range(len(each.queries))]


@contextmanager
def without_heads(
    attentions: Sequence[Attention], heads: Sequence[Head], removal: Removal = "undifferentiated"
) -> Iterator[None]:
    """Within the block, the model runs without `heads`; they are back at exit."""
    with together(hook for head in heads for hook in _without(attentions[head.block], head.index, removal)):
        yield


def _without(attention: Attention, index: int, removal: Removal) -> Iterator[AbstractContextManager[None]]:
    def silence(outputs: torch.Tensor) -> torch.Tensor:
        silenced = outputs.clone()
        silenced[..., attention.columns(index)] = 0
        return silenced

    def zero(columns: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        return queries.index_fill(-1, columns, 0)

    if removal == "silenced":
        yield on_input(attention.output, silence)
    else:
        for module, columns in attention.queries[index].items():
            yield on_output(module, partial(zero, columns))


def _run_on_noise(chat: ChatModel) -> list[list[_Run]]:
    """Return for every block the matrices that ran in it, in order, each cut off from what it would have computed."""
    generator = torch.Generator().manual_seed(0)
    runs: list[list[_Run]] = [[] for _ in chat.blocks]

    def hook_for(kept: list[_Run]) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
            stream = stream_of(output)
            if stream is None or stream.ndim != 3:
                return output
            noise = torch.randn(stream.shape, generator=generator).to(stream).requires_grad_()
            kept.append(_Run(module, args[0], noise))
            return noise.clone()  # a leaf could not be added to in place, as some models do

        return hook

    with together(
        after_call(module, hook_for(kept))
        for block, kept in zip(chat.blocks, runs, strict=True)
        for module in filter(is_matrix, block.modules())
    ):
        chat.model(input_ids=probe_tokens(chat.model), use_cache=False)
    return runs


def _attention(runs: Sequence[_Run], num_heads: int, where: str) -> Attention:
    """Tell heads apart: the first matrix whose input mixes positions reads them all, and they stand in it side by
    side.
    """
    for index, run in enumerate(runs):
        earlier = runs[:index]
        reached = _reach(run.given[:, 1:], earlier) if run.given.requires_grad and earlier else {}
        carried = {module: grad[0, 0] != 0 for module, grad in reached.items()}
        if any(columns.any() for columns in carried.values()):
            return _separate(run, earlier, carried, num_heads, where)
    raise _refused(where)


def _separate(
    run: _Run, earlier: Sequence[_Run], carried: dict[nn.Module, torch.Tensor], num_heads: int, where: str
) -> Attention:
    """Return the attention; `carried` are the numbers that pass from the first position to later ones: keys and
    values.
    """
    width, rest = divmod(run.given.shape[-1], num_heads)
    queries, sources = [], []
    for index in range(num_heads):
        reached = _reach(run.given[:, -1:, index * width : (index + 1) * width], earlier)
        read = {module: (grad[0] != 0).any(dim=0) for module, grad in reached.items()}
        queries.append(_columns({module: mask & ~carried[module] for module, mask in read.items()}))
        sources.append(_columns(read))
    sizes = {sum(map(len, each.values())) for each in queries}
    owners = [(module, column) for each in queries for module, part in each.items() for column in part.tolist()]
    if rest or len(sizes) != 1 or sizes == {0} or len(set(owners)) != len(owners):
        raise _refused(where)
    return Attention(run.module, width, tuple(queries), tuple(sources))


def _reach(outputs: torch.Tensor, earlier: Sequence[_Run]) -> dict[nn.Module, torch.Tensor]:
    """Return by matrix the gradient `[1, T, W]` of a random sum of `outputs`; zero where nothing depends on it."""
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    noises = [run.noise for run in earlier]
    grads = torch.autograd.grad((outputs * weights).sum(), noises, allow_unused=True, retain_graph=True)
    return {
        run.module: torch.zeros_like(run.noise) if grad is None else grad
        for run, grad in zip(earlier, grads, strict=True)
    }


def _columns(masks: dict[nn.Module, torch.Tensor]) -> Columns:
    return {module: mask.nonzero().flatten() for module, mask in masks.items() if mask.any()}


def _refused(where: str) -> ModelError:
    return ModelError(
        f"{where} has no attention whose heads can be told apart",
        field="model",
        remedy="leave out what asks about heads: it takes softmax attention with its own queries for each head",
    )
