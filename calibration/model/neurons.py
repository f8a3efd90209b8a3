"""Neurons: what goes into every block's down-projection (site `mlp_neurons`), read or overwritten while a batch passes.

A neuron's number counts through the whole model: the neurons of block 0 in their order, then those of block 1, and so
on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import before_call, on_input, on_output, together
from calibration.model.structure import neurons_of
from calibration.prompts.batching import iterate_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts

Numbers = npt.NDArray[np.int64]
"""Neurons by their number in the model."""

HELD_BYTES = 1 << 30
"""Most that one pass may hold of neurons: a wide model passes fewer tokens, or more often, rather than more memory."""
_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Neurons:
    """A model's neurons, and where they are."""

    chat: ChatModel
    projections: tuple[nn.Module, ...]
    """The down-projections `[L]`."""
    widths: tuple[int, ...]
    """Neurons of each block `[L]`."""

    @classmethod
    def of(cls, chat: ChatModel) -> "Neurons":
        """Find them. Raises `ModelError` where a block has no single down-projection."""
        projections = tuple(chat.down_projections())
        return cls(chat, projections, tuple(neurons_of(module, chat.hidden_size) for module in projections))

    @property
    def count(self) -> int:
        """All neurons of the model."""
        return sum(self.widths)

    @property
    def starts(self) -> Numbers:
        """The number of each block's first neuron, and at last `count`: `[L + 1]`."""
        return np.concatenate([[0], np.cumsum(self.widths)]).astype(np.int64)

    def layer_of(self, numbers: Numbers) -> Numbers:
        """Return the block of each neuron."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def by_layer(self, numbers: Numbers) -> dict[int, torch.Tensor]:
        """Return each block's chosen neurons as ascending places `[k]` within the block; blocks without any are left
        out.
        """
        ordered = np.sort(numbers)
        layers = self.layer_of(ordered)
        return {
            layer: torch.from_numpy(ordered[layers == layer] - self.starts[layer]).to(self.chat.device)
            for layer in np.unique(layers).tolist()
        }

    def batch_tokens(self, num_chosen: int) -> int:
        """Return how many tokens a batch may have so that their chosen neurons stay within `HELD_BYTES`."""
        size = next(self.chat.model.parameters()).element_size()
        return max(min(_BATCH_TOKENS, HELD_BYTES // (size * max(num_chosen, 1))), 1)


@contextmanager
def watched(
    neurons: Neurons, layers: Sequence[int], keep: Callable[[int, torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the dictionary, at each pass, with `keep(layer, neurons [B, T, F])` by layer. Hooks are gone at exit."""
    kept: dict[int, torch.Tensor] = {}

    def visit(layer: int, values: torch.Tensor) -> torch.Tensor:
        kept[layer] = keep(layer, values)
        return values

    with _visited(neurons, layers, visit):
        yield kept


@contextmanager
def overwritten(
    neurons: Neurons, places: Mapping[int, torch.Tensor], values: Mapping[int, torch.Tensor]
) -> Iterator[None]:
    """Within the block, the neurons at `places[layer]` `[k]` have `values[layer]` `[B, T, k]`, at every position.

    `values` is looked up at each pass, so it may be what `watched` fills in another model.
    """

    def visit(layer: int, stream: torch.Tensor) -> torch.Tensor:
        edited = stream.clone()
        edited[..., places[layer]] = values[layer].to(stream.dtype)
        return edited

    with _visited(neurons, list(places), visit):
        yield


@contextmanager
def rewritten(
    neurons: Neurons, like: Neurons, places: Mapping[int, torch.Tensor], values: Mapping[int, torch.Tensor]
) -> Iterator[None]:
    """Within the block, the neurons at `places[layer]` `[k]`, whose values are `values[layer]`, write as those of
    `like` do.

    A neuron writes its value times its column of the down-projection; the difference of the two models' columns is
    added.
    """

    def rewrite(layer: int, output: torch.Tensor) -> torch.Tensor:
        own, other = (_written(each, each.projections[layer], places[layer]) for each in (neurons, like))
        given = values[layer].reshape(*output.shape[:-1], len(places[layer]))
        return output + given.to(output.dtype) @ (other - own)

    with together(on_output(neurons.projections[layer], partial(rewrite, layer)) for layer in places):
        yield


def _written(neurons: Neurons, projection: nn.Module, place: torch.Tensor) -> torch.Tensor:
    """Return what the neurons at `place` `[k]` write per unit, `[k, D]`, whichever way the family lays its matrix."""
    weight: torch.Tensor = projection.weight  # type: ignore[assignment]  # a down-projection is a matrix module
    return weight[:, place].T if weight.shape[0] == neurons.chat.hidden_size else weight[place]


@contextmanager
def _visited(
    neurons: Neurons, layers: Sequence[int], visit: Callable[[int, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    num_rows = 0

    def count_rows(_args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal num_rows
        num_rows = len(kwargs["input_ids"])

    def see(layer: int, given: torch.Tensor) -> torch.Tensor:
        # OPT's MLP works on [B * T, F].
        values = given.reshape(num_rows, -1, given.shape[-1])
        return visit(layer, values).reshape(given.shape)

    inputs = [on_input(neurons.projections[layer], partial(see, layer)) for layer in layers]
    with together([*inputs, before_call(neurons.chat.model, count_rows)]):
        yield


def neurons_at_end(neurons: Neurons, prompts: EncodedPrompts, numbers: Numbers) -> npt.NDArray[np.float32]:
    """Return the neurons `numbers` `[k]` at each prompt's last token, float32 `[N, k]`, in the order of `numbers`.

    One pass; the result is all that is held, so the caller bounds memory by what it asks for.
    """
    places = neurons.by_layer(numbers)
    result = np.empty((len(prompts.prompts), len(numbers)), dtype=np.float32)
    order = np.argsort(numbers, kind="stable")
    for batch in track(list(iterate_batches(prompts.token_ids, neurons.chat.device)), "reading neurons"):
        rows, ends = torch.arange(len(batch.lengths), device=batch.lengths.device), batch.from_end(0)

        def keep(
            layer: int, values: torch.Tensor, rows: torch.Tensor = rows, ends: torch.Tensor = ends
        ) -> torch.Tensor:
            return values[rows, ends][:, places[layer]].float().cpu()

        with watched(neurons, list(places), keep) as kept:
            neurons.chat.last_logits(batch)
        result[np.ix_(batch.rows, order)] = torch.cat([kept[layer] for layer in places], dim=1).numpy()
    return result
