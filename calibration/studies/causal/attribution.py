"""Attribution patching: what patching each part of the model would do to refusal, from gradients (AtP*, arXiv
2403.00745).

The effect of a part is the refusal log-odds lost when its value in a harmful prompt's run is replaced by its value in
the run of a harmless prompt. To first order that is `(a_harmful - a_harmless) . gradient`, for all parts at once. Two
things make that estimate miss parts, and two remedies are taken: queries and keys act through a softmax that is flat
where it is saturated, so their attention weights are computed anew; and direct and indirect effects cancel, so the
gradient is also taken with each layer's contribution dropped in turn, and the absolute estimates are averaged
(GradDrop).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from calibration.fitting.training_set import TrainingSet
from calibration.model.refusal_gradient import differentiable, refusal_log_odds
from calibration.model.sites import Kind, Patterns, Site, Sites
from calibration.prompts.batching import Batch
from calibration.prompts.progress import track
from calibration.studies.causal.pairs import PromptPairs

_BATCH = 16

Values = dict[Site, torch.Tensor]


class Part(NamedTuple):
    """One component: `unit` is a head, a neuron, or for `stream` the tokens before the prompt's last one."""

    kind: Kind
    layer: int
    unit: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What gradients say of one part, averaged over pairs. All are in log-odds of refusal."""

    effect: float
    """Plain attribution patching, signed: positive where the part carries refusal."""
    magnitude: float
    """Plain, mean of absolute values."""
    refined: float
    """AtP*: mean of absolute values, with both remedies."""


def record(sites: Sites, batch: Batch) -> Values:
    """Return every site's value in a run of `batch`, detached."""
    values: Values = {}

    def keep(site: Site, value: torch.Tensor) -> torch.Tensor:
        values[site] = value.detach().clone()
        return value

    with sites.tapped(keep), torch.no_grad():
        sites.chat.differentiable_logits(batch)
    return values


def estimate(training: TrainingSet, sites: Sites, pairs: PromptPairs, tokens: Sequence[int]) -> dict[Part, Estimate]:
    """Return the estimate of every part of the model."""
    offsets = range(training.instruction_offset + 1)
    sums: dict[Site, torch.Tensor] = {}
    for harmful, harmless in track(list(pairs.batches(training, _BATCH)), "attributing refusal"):
        for site, columns in _estimate_batch(sites, harmful, harmless, tokens, offsets).items():
            sums[site] = sums.get(site, torch.zeros(())) + columns
    return {
        Part(site.kind, site.layer, unit): Estimate(*(float(value) / len(pairs) for value in columns))
        for site, table in sums.items()
        for unit, columns in enumerate(table.T)
    }


def _estimate_batch(
    sites: Sites, harmful: Batch, harmless: Batch, tokens: Sequence[int], offsets: Sequence[int]
) -> dict[Site, torch.Tensor]:
    """Return by site `[3, parts]`: effect, magnitude and refined estimate, summed over the batch's pairs."""
    before, run = record(sites, harmless), _Differentiated(sites, harmful, tokens)
    changes = run.changes(before)
    plain = run.estimates(changes, offsets, repaired=False)
    repaired = [run.estimates(changes, offsets, repaired=True, dropped=layer) for layer in range(sites.chat.num_layers)]
    # A part gets nothing through its own layer's drop, so one term of the L is always zero (the paper's L - 1).
    terms = max(sites.chat.num_layers - 1, 1)
    return {
        site: torch.stack(
            [
                value.sum(dim=0),
                value.abs().sum(dim=0),
                torch.stack([each[site].abs() for each in repaired]).sum(dim=0).sum(dim=0) / terms,
            ]
        ).cpu()
        for site, value in plain.items()
    }


class _Differentiated:
    """A run of harmful prompts whose graph is kept, so that gradients can be taken again and again."""

    def __init__(self, sites: Sites, batch: Batch, tokens: Sequence[int]) -> None:
        self.batch = batch
        self.values: Values = {}
        self.dropped: int | None = None
        self._plain: Values = {}
        with differentiable(sites.chat), sites.tapped(self._keep) as patterns:
            self.metric = refusal_log_odds(sites.chat.differentiable_logits(batch), tokens).sum()
        self.patterns: Patterns = patterns

    def _keep(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        self.values[site] = value
        if site.kind in ("attention", "mlp"):
            value.register_hook(self._stopper(site.layer))  # type: ignore[no-untyped-call]
        return value

    def _stopper(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the hook that lets no gradient into what layer `layer` writes while that layer is dropped."""
        return lambda gradient: torch.zeros_like(gradient) if self.dropped == layer else gradient

    def changes(self, before: Values) -> dict[Site, tuple[Site, torch.Tensor]]:
        """Return by site where its gradient is taken, and by how much that place changes, when it is repaired."""
        found = {}
        for site, value in self.values.items():
            if site.kind in ("query", "key"):
                query, key = (self.values[Site(kind, site.layer)].detach() for kind in ("query", "key"))
                now = self.patterns.weights(site.layer, query, key)
                query, key = (before[site], key) if site.kind == "query" else (query, before[site])
                found[site] = Site("pattern", site.layer), now - self.patterns.weights(site.layer, query, key)
            elif site.kind != "pattern":
                found[site] = site, value.detach() - before[site]
        self._plain = {site: self.values[site].detach() - before[site] for site in found}
        return found

    def estimates(
        self,
        changes: dict[Site, tuple[Site, torch.Tensor]],
        offsets: Sequence[int],
        *,
        repaired: bool,
        dropped: int | None = None,
    ) -> dict[Site, torch.Tensor]:
        """Return `change . gradient` by site, `[B, parts]`."""
        self.dropped = dropped
        gradients = dict(
            zip(
                self.values,
                torch.autograd.grad(
                    self.metric,
                    list(self.values.values()),
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                ),
                strict=True,
            )
        )
        result = {}
        for site, (place, change) in changes.items():
            product = gradients[place] * change if repaired else gradients[site] * self._plain[site]
            result[site] = _by_part(site.kind, product, self.values, self.batch, offsets, site.layer)
        return result


def _by_part(
    kind: Kind, product: torch.Tensor, values: Values, batch: Batch, offsets: Sequence[int], layer: int
) -> torch.Tensor:
    """Sum a product of a site's shape over all but prompts and parts: `[B, parts]`."""
    if kind == "stream":
        rows = torch.arange(len(batch.lengths), device=product.device)
        return torch.stack([product[rows, batch.from_end(offset)].sum(dim=-1) for offset in offsets], dim=1)
    if kind == "head":
        return product.sum(dim=(1, 3))
    if kind == "query":
        return product.sum(dim=(2, 3))
    if kind == "key":
        # A repaired product is a pattern's, with one row per query head: heads that share keys are one part.
        groups = values[Site("key", layer)].shape[1]
        per_head = product.sum(dim=(2, 3))
        return per_head.reshape(len(per_head), groups, -1).sum(dim=-1)
    if kind == "neuron":
        return product.reshape(len(batch.lengths), -1, product.shape[-1]).sum(dim=1)
    return product.reshape(len(batch.lengths), -1).sum(dim=1, keepdim=True)
