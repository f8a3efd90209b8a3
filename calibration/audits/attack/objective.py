"""What an attacker minimises: the model's refusal, and beside it a probe's score (arXiv 2412.09565)."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from calibration.audits.attack.differentiable_score import Activations, activations_of, probe_score
from calibration.fitting.fitted import FittedProbe
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_gradient import refusal_log_odds
from calibration.prompts.batching import Batch
from probes.template import Template

MARGIN = 0.5
"""Log-odds by which an attack has to succeed before it stops: rounding must not undo it."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss that is zero where the model answers and, where a probe is given, its score is below the cut."""

    name: str
    refusal_tokens: tuple[int, ...]
    probe: FittedProbe | None = None
    cut: float = 0.0
    template: Template | None = None
    """The model's chat template, by which the probe reads."""

    def loss(self, chat: ChatModel, batch: Batch) -> torch.Tensor:
        """Return each prompt's loss `[B]`, as a graph where one is being made."""
        reading: AbstractContextManager[Activations] = (
            activations_of(chat, self.probe) if self.probe else nullcontext({})
        )
        with reading as activations:
            logits = chat.differentiable_logits(batch)
        loss = (refusal_log_odds(logits, self.refusal_tokens) + MARGIN).relu()
        if self.probe is None:
            return loss
        over: torch.Tensor = probe_score(self.probe, activations, batch, self.template) - self.cut + MARGIN
        return loss + over.relu()
