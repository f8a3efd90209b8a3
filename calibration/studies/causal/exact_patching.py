"""Exact activation patching: one part of the model at a time, one forward pass for each.

The truth that AtP* estimates.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from calibration.fitting.training_set import TrainingSet
from calibration.model.refusal_gradient import refusal_log_odds
from calibration.model.sites import Edit, Site, Sites
from calibration.prompts.batching import Batch
from calibration.prompts.progress import track
from calibration.studies.causal.attribution import Part, Values, record
from calibration.studies.causal.pairs import PromptPairs

_BATCH = 16


def patch_exactly(
    training: TrainingSet, sites: Sites, pairs: PromptPairs, tokens: Sequence[int], parts: Sequence[Part]
) -> dict[Part, torch.Tensor]:
    """Return the refusal log-odds lost, float32 `[N]` over pairs, when each part is taken from the harmless run."""
    lost: dict[Part, list[torch.Tensor]] = {part: [] for part in parts}
    for harmful, harmless in pairs.batches(training, _BATCH):
        before = record(sites, harmless)
        untouched = _metric(sites, harmful, tokens, None)
        for part in track(parts, "patching exactly"):
            lost[part].append(untouched - _metric(sites, harmful, tokens, _from(before, part, harmful)))
    return {part: torch.cat(chunks) for part, chunks in lost.items()}


def _metric(sites: Sites, batch: Batch, tokens: Sequence[int], edit: Edit | None) -> torch.Tensor:
    with torch.no_grad(), sites.tapped(edit) if edit else nullcontext():
        return refusal_log_odds(sites.chat.differentiable_logits(batch), tokens).cpu()


def _from(before: Values, part: Part, batch: Batch) -> Edit:
    """Return the edit that gives one part its value in the other run."""
    wanted = Site(part.kind, part.layer)

    def replace(site: Site, value: torch.Tensor) -> torch.Tensor:
        if site != wanted:
            return value
        return _with_part(value.clone(), before[site], part, batch)

    return replace


def _with_part(value: torch.Tensor, other: torch.Tensor, part: Part, batch: Batch) -> torch.Tensor:
    if part.kind in ("query", "key"):
        value[:, part.unit] = other[:, part.unit]
    elif part.kind == "head":
        value[:, :, part.unit] = other[:, :, part.unit]
    elif part.kind == "neuron":
        value[..., part.unit] = other[..., part.unit]
    elif part.kind == "stream":
        rows = torch.arange(len(batch.lengths), device=value.device)
        value[rows, batch.from_end(part.unit)] = other[rows, batch.from_end(part.unit)]
    else:
        return other
    return value
