"""What an attacker minimises: the model's refusal, and beside it a probe's score (arXiv 2412.09565)."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from calibration.batching import Batch
from calibration.causal.refusal_gradient import refusal_log_odds
from calibration.methods.fitted import FittedProbe
from calibration.model import ChatModel
from calibration.structure import stream_of
from probes.readout import Readout

MARGIN = 0.5
"""Log-odds by which an attack has to succeed before it stops: rounding must not undo it."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss that is zero where the model answers and, where a probe is given, its score is below the cut."""

    name: str
    refusal_tokens: tuple[int, ...]
    probe: FittedProbe | None = None
    cut: float = 0.0

    def loss(self, chat: ChatModel, batch: Batch) -> torch.Tensor:
        """Return each prompt's loss `[B]`, as a graph where one is being made."""
        streams: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for layer in self.probe.spec.layers if self.probe else ():
                handle = chat.blocks[layer].register_forward_hook(_keeper(streams, layer))
                stack.callback(handle.remove)
            logits = chat.differentiable_logits(batch)
        loss = (refusal_log_odds(logits, self.refusal_tokens) + MARGIN).relu()
        if self.probe is None:
            return loss
        over: torch.Tensor = probe_score(self.probe, streams, batch) - self.cut + MARGIN
        return loss + over.relu()


def _keeper(streams: dict[int, torch.Tensor], layer: int) -> Any:
    def keep(_block: Any, _args: Any, output: Any) -> None:
        stream = stream_of(output)
        if stream is not None:
            streams[layer] = stream

    return keep


def probe_score(probe: FittedProbe, streams: dict[int, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Return request scores `[B]` from streams `[B, T, D]`: what `probes.scoring` computes, but differentiable."""
    rows = probe.weight.reshape(len(probe.spec.layers), -1)
    parts = [
        streams[layer].float() @ row.to(batch.mask.device) for layer, row in zip(probe.spec.layers, rows, strict=True)
    ]
    tokens = torch.stack(parts).sum(dim=0) + probe.spec.bias
    return torch.stack(
        [
            _reduce(scores[:length], probe.spec.readout)
            for scores, length in zip(tokens, batch.lengths.tolist(), strict=True)
        ]
    )


def _reduce(scores: torch.Tensor, readout: Readout) -> torch.Tensor:
    if readout.kind == "last":
        return scores[max(len(scores) - 1 - readout.offset, 0)]
    if readout.kind == "mean":
        return scores.mean()
    if readout.kind == "max":
        return scores.max()
    if readout.kind == "swim":
        return scores.unfold(0, min(readout.window, len(scores)), 1).mean(dim=1).max()
    return torch.stack(list(_levels(scores, readout.alpha))).max()


def _levels(scores: torch.Tensor, alpha: float) -> Sequence[torch.Tensor]:
    levels = [scores[0]]
    for score in scores[1:]:
        levels.append(levels[-1] + alpha * (score - levels[-1]))
    return levels
