"""Dose and response: what a steering vector does to refusals, and to harmless answers, as its strength grows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from calibration.fitting.fitted import FittedSteering
from calibration.fitting.training_set import TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.model.intervention import since, steered
from calibration.model.refusal_metric import Intervention, first_token_log_probs, mean_kl, refusal_metric
from calibration.prompts.batching import Batch
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.recording.stage_file import Strict
from probes.steering import moves_of

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Of what is added: in norms of the vector."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of maps and rotations: the way from the stream to its image, which 1 reaches."""
_MOST = 64
"""Prompts per class: a mean of 64 log-odds is steady enough for a curve."""


class Dose(Strict):
    """What a steering vector does at one strength, applied as the server applies it."""

    strength: float
    refusal_harmful: float
    """Mean refusal metric: log-odds that the answer begins as a refusal."""
    refusal_harmless: float
    refused_harmful: float
    """Share of harmful prompts that are more likely refused than not."""
    refused_harmless: float
    kl_harmless: float
    """Mean KL of the first token's distribution from the unsteered one's, nats, on harmless prompts."""


@dataclass(frozen=True, slots=True)
class StrengthSweep:
    """Prompts of both kinds, and the first tokens of the untouched model on them."""

    chat: ChatModel
    tokens: tuple[int, ...]
    harmful: EncodedPrompts
    harmless: EncodedPrompts
    on_harmful: torch.Tensor
    """Log-probabilities `[N, V]`."""
    on_harmless: torch.Tensor

    @classmethod
    def of(cls, training: TrainingSet, refusal_tokens: Sequence[int], most: int = _MOST) -> "StrengthSweep":
        """Take at most `most` selection prompts of each class."""
        harmful, harmless = (
            training.prompts.subset(training.sample(training.select, harmful=label, most=most))
            for label in (True, False)
        )
        return cls.on(training.chat, refusal_tokens, harmful, harmless)

    @classmethod
    def on(
        cls, chat: ChatModel, refusal_tokens: Sequence[int], harmful: EncodedPrompts, harmless: EncodedPrompts
    ) -> "StrengthSweep":
        """Take these prompts."""
        untouched = [first_token_log_probs(chat, prompts) for prompts in (harmful, harmless)]
        return cls(chat, tuple(refusal_tokens), harmful, harmless, untouched[0], untouched[1])

    def untouched(self) -> Dose:
        """Return strength 0."""
        return self._dose(0.0, self.on_harmful, self.on_harmless)

    def dose(self, strength: float, intervention: Intervention) -> Dose:
        """Return what the model does under an intervention, which is named by its strength."""
        found = [first_token_log_probs(self.chat, prompts, intervention) for prompts in (self.harmful, self.harmless)]
        return self._dose(strength, found[0], found[1])

    def curve(self, steering: FittedSteering, strengths: Sequence[float] | None = None) -> tuple[Dose, ...]:
        """Return a vector's doses, beginning with strength 0, at `strengths` or those that its operator is tried at."""
        tried = strengths or strengths_of(steering)
        title = f"dose and response of {steering.spec.name}"
        return (
            self.untouched(),
            *(self.dose(each, served(self.chat, steering, each)) for each in track(list(tried), title)),
        )

    def _dose(self, strength: float, harmful: torch.Tensor, harmless: torch.Tensor) -> Dose:
        on_harmful, on_harmless = (refusal_metric(each, self.tokens) for each in (harmful, harmless))
        return Dose(
            strength=strength,
            refusal_harmful=float(on_harmful.mean()),
            refusal_harmless=float(on_harmless.mean()),
            refused_harmful=float((on_harmful > 0).mean()),
            refused_harmless=float((on_harmless > 0).mean()),
            kl_harmless=mean_kl(self.on_harmless, harmless),
        )


def strengths_of(steering: FittedSteering) -> tuple[float, ...]:
    """Return the strengths that a vector is tried at, by its operator."""
    return STRENGTHS if steering.spec.operator == "add" else SHARES


def served(chat: ChatModel, steering: FittedSteering, strength: float) -> Intervention:
    """Return the vector as an intervention, applied where the server applies it: from the prompt's last position on."""
    moves = moves_of(steering.spec, steering.tensors)

    def intervene(batch: Batch) -> AbstractContextManager[None]:
        return steered(chat, moves, since(batch.from_end(0), strength, steering.spec.schedule))

    return intervene


def dose_response(
    training: TrainingSet,
    steering: FittedSteering,
    refusal_tokens: Sequence[int],
    strengths: Sequence[float] | None = None,
) -> tuple[Dose, ...]:
    """Return the curve of a vector on selection prompts, beginning with strength 0."""
    return StrengthSweep.of(training, refusal_tokens).curve(steering, strengths)
