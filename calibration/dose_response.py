"""Dose and response: what a steering vector does to refusals, and to harmless answers, as its strength grows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch

from calibration.batching import Batch
from calibration.intervention import added
from calibration.methods.fitted import FittedSteering
from calibration.methods.training import TrainingSet
from calibration.model import ChatModel
from calibration.progress import track
from calibration.refusal_metric import first_token_log_probs, mean_kl, refusal_metric
from calibration.stage_file import Strict

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_MOST = 64
"""Prompts per class: a mean of 64 log-odds is steady enough for a curve."""


class Dose(Strict):
    """What a steering vector does at one strength, added as the server adds it."""

    strength: float
    refusal_harmful: float
    """Mean refusal metric: log-odds that the answer begins as a refusal."""
    refusal_harmless: float
    refused_harmless: float
    """Share of harmless prompts that are more likely refused than not."""
    kl_harmless: float
    """Mean KL of the first token's distribution from the unsteered one's, nats, on harmless prompts."""


def dose_response(
    training: TrainingSet,
    steering: FittedSteering,
    refusal_tokens: Sequence[int],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Dose, ...]:
    """Return the curve of a vector on one block, on selection prompts, beginning with strength 0.

    The vector is added where the server adds it: at the prompt's last position, which predicts the first token.
    """
    chat, [layer] = training.chat, steering.spec.layers
    harmful, harmless = (
        training.prompts.subset(training.sample(training.select, harmful=label, most=_MOST)) for label in (True, False)
    )
    unsteered = first_token_log_probs(chat, harmless)
    curve = [_dose(0.0, first_token_log_probs(chat, harmful), unsteered, unsteered, refusal_tokens)]
    for strength in track(list(strengths), f"dose and response of {steering.spec.name}"):
        steered = partial(_added_last, chat, layer, strength * steering.vector[0])
        on_harmful, on_harmless = (first_token_log_probs(chat, prompts, steered) for prompts in (harmful, harmless))
        curve.append(_dose(strength, on_harmful, on_harmless, unsteered, refusal_tokens))
    return tuple(curve)


def _added_last(chat: ChatModel, layer: int, shift: torch.Tensor, batch: Batch) -> AbstractContextManager[None]:
    return added(chat, layer, shift, only=batch.from_end(0))


def _dose(
    strength: float, harmful: torch.Tensor, harmless: torch.Tensor, unsteered: torch.Tensor, tokens: Sequence[int]
) -> Dose:
    on_harmless = refusal_metric(harmless, tokens)
    return Dose(
        strength=strength,
        refusal_harmful=float(refusal_metric(harmful, tokens).mean()),
        refusal_harmless=float(on_harmless.mean()),
        refused_harmless=float((on_harmless > 0).mean()),
        kl_harmless=mean_kl(unsteered, harmless),
    )
