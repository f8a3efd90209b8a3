"""Sites: every place in a model that can be read, differentiated or overwritten, behind one function.

Within `tapped(chat, edit)` each forward pass hands the value at every site to `edit`, and goes on with what it returns.
Recording, caching, patching and stopping a gradient are then each one small `edit`. Heads are reached through
Transformers' attention interface, so that no family's projections or rotations have to be known by name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input, on_output, together
from calibration.prompts.batching import Batch
from probes.errors import ModelError

Kind = Literal["query", "key", "pattern", "head", "attention", "neuron", "mlp", "stream"]
"""`query` `[B, H, T, d]` and `key` `[B, G, T, d]` after rotation, `pattern` `[B, H, T, T]` (attention weights), `head`
`[B, T, H, d]` (their outputs), `neuron` `[B, T, M]`; `attention`, `mlp` (what they write) and `stream` are `[B, T,
D]`."""

_INTERFACE = "foreguard_tapped"
_SAME = 1e-3
"""Log-odds by which tapped attention may differ from the model's own before its heads are left alone."""


class Site(NamedTuple):
    """A place: what kind, and in which block."""

    kind: Kind
    layer: int


Edit = Callable[[Site, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sites:
    """Where a model's sites are."""

    chat: ChatModel
    down_projections: list[nn.Module]
    """Empty where no single down-projection sees every token (a mixture of experts)."""
    has_heads: bool
    """Whether queries, keys, patterns and heads can be reached."""

    @classmethod
    def of(cls, chat: ChatModel, batch: Batch) -> "Sites":
        """Find the sites; `batch` is what tapped and untapped attention are compared on."""
        try:
            down = chat.down_projections()
        except ModelError:  # no neurons to speak of: the other sites stand
            down = []
        return cls(chat, down, _heads_are_reached(chat, batch))

    @contextmanager
    def tapped(self, edit: Edit) -> Iterator["Patterns"]:
        """Within the block every forward pass goes through `edit`, site by site in the model's order."""
        patterns = Patterns(_layers_of(self.chat), edit)
        outputs = [on_output(module, partial(edit, site)) for module, site in _outputs(self)]
        neurons = [
            on_input(module, partial(edit, Site("neuron", layer))) for layer, module in enumerate(self.down_projections)
        ]
        with together([*outputs, *neurons]), _attention(self.chat, patterns) if self.has_heads else nullcontext():
            yield patterns


@dataclass(slots=True)
class Patterns:
    """Attention as it was computed in the last pass, so that it can be computed again from other queries or keys."""

    layers: dict[nn.Module, int]
    edit: Edit
    how: dict[int, tuple[float, torch.Tensor | None]] = field(default_factory=dict)
    """Scale and additive mask by layer."""

    def weights(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Return the attention weights `[B, H, T, T]` of queries and keys."""
        scale, mask = self.how[layer]
        scores = query @ _for_each_query(key, query).transpose(-1, -2) * scale
        return (scores if mask is None else scores + mask).softmax(dim=-1)

    def attend(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scale: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what the model's own attention does, with every step handed to `edit`."""
        layer = self.layers[module]
        self.how[layer] = (query.shape[-1] ** -0.5 if scale is None else float(scale), mask)
        query, key = self.edit(Site("query", layer), query), self.edit(Site("key", layer), key)
        weights = self.edit(Site("pattern", layer), self.weights(layer, query, key))
        heads = (weights.to(value.dtype) @ _for_each_query(value, query)).transpose(1, 2)
        return self.edit(Site("head", layer), heads).contiguous(), weights


def _for_each_query(shared: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Repeat keys or values `[B, G, T, d]` for the query heads that share them."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], dim=1)


def _layers_of(chat: ChatModel) -> dict[nn.Module, int]:
    return {module: layer for layer, block in enumerate(chat.blocks) for module in block.modules()}


def _outputs(sites: Sites) -> Iterator[tuple[nn.Module, Site]]:
    layers = _layers_of(sites.chat)
    for writer in sites.chat.writers:
        is_mlp = any(down in set(writer.modules()) for down in sites.down_projections)
        # Without neurons the second writer of a block is its MLP, or its experts.
        is_mlp |= not sites.down_projections and sites.chat.writers.index(writer) % 2 == 1
        yield writer, Site("mlp" if is_mlp else "attention", layers[writer])
    for layer, block in enumerate(sites.chat.blocks):
        yield block, Site("stream", layer)


@contextmanager
def _attention(chat: ChatModel, patterns: Patterns) -> Iterator[None]:
    """Within the block the model's attention is `patterns.attend`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        return patterns.attend(module, query, key, value, attention_mask, options.get("scaling"))

    AttentionInterface.register(_INTERFACE, attend)
    AttentionMaskInterface.register(_INTERFACE, eager_mask)
    config: Any = chat.model.config
    before = config._attn_implementation  # noqa: SLF001 - Transformers has no public name for what is in force
    chat.model.set_attn_implementation(_INTERFACE)  # type: ignore[operator]  # every Transformers model has it
    try:
        yield
    finally:
        chat.model.set_attn_implementation(before)  # type: ignore[operator]


def _heads_are_reached(chat: ChatModel, batch: Batch) -> bool:
    """Tell whether plain softmax attention through the interface gives the model's own answers.

    It does not where a model caps its scores, adds sinks, or calls its attention by another way.
    """
    seen: set[Site] = set()

    def note(site: Site, value: torch.Tensor) -> torch.Tensor:
        seen.add(site)
        return value

    own = chat.last_logits(batch)
    with _attention(chat, Patterns(_layers_of(chat), note)):
        ours = chat.last_logits(batch)
    reached = {site.layer for site in seen} == set(range(chat.num_layers))
    return reached and bool((own - ours).abs().max() < _SAME)
