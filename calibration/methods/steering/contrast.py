"""The contrast that steering is fitted on: what the model refuses, what it answers, and the block where that is
decided.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.fitted import FittedSteering
from calibration.fitting.training_set import NO_REFUSALS, Rows, TrainingSet
from calibration.methods.steering.dose_response import StrengthSweep, served
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.progress import track
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS
from probes.manifest import Gate, Operator, SteeringVector
from probes.steering import displacement, moves_of

Streams = npt.NDArray[np.float64]

_MOST = 256
"""Fitting prompts per class whose first token is looked at."""
_MOST_CANDIDATES = 8
_DEEPEST = 0.8
"""As for the refusal direction: what is set later than at 0.8 L has no blocks left to act through."""
_JUDGES = 32


@dataclass(frozen=True, slots=True)
class SteeringContrast:
    """Fitting prompts by what the model does with them, read at the last position of one block, where steering
    begins.
    """

    training: TrainingSet
    tokens: tuple[int, ...]
    layer: int
    refused: Rows
    """Harmful prompts that the model refuses."""
    answered: Rows
    """Prompts of either kind that it answers."""

    def streams(self, rows: Rows) -> Streams:
        """Return the residual stream at the last position, `[N, D]`."""
        return self.training.features(self.layer, 0, rows).astype(np.float64)

    def labelled(self, part: Rows, *, harmful: bool) -> Streams:
        """Return the streams of the prompts of `part` (fit or select) with a label, refused or not."""
        return self.streams(part[self.training.harmful[part] == harmful])

    @property
    def difference(self) -> Streams:
        """Mean of what is refused minus mean of what is answered, `[D]`."""
        return np.asarray(self.streams(self.refused).mean(axis=0) - self.streams(self.answered).mean(axis=0))

    def vector(
        self,
        name: str,
        method: str,
        tensors: dict[str, Streams],
        *,
        operator: Operator = "add",
        gate: Gate | None = None,
        rank: int | None = None,
        evidence: dict[str, float] | None = None,
    ) -> FittedSteering:
        """Return what was fitted, its tensors given without the axis of blocks.

        A gate is fitted at the prompt's last position and knows nothing of the answer's tokens, on which it opens at
        random; so what is gated acts at that position alone, and on the answer through the keys and values left there.
        """
        spec = SteeringVector(
            name=name,
            method=method,
            operator=operator,
            gate=gate,
            layers=(self.layer,),
            rank=rank,
            schedule=(1.0, 0.0) if gate else (),
            norm=0.0,
            cos_refusal=0.0,
            evidence=evidence or {},
        )
        fitted = FittedSteering(spec, {key: torch.from_numpy(each)[None].float() for key, each in tensors.items()})
        shift = mean_displacement(fitted, self.training)
        return FittedSteering(spec.model_copy(update={"norm": float(shift.norm())}), fitted.tensors)


def mean_displacement(steering: FittedSteering, training: TrainingSet) -> torch.Tensor:
    """Return what a vector adds to harmful fitting prompts at strength 1 on its first block, on average, `[D]`.

    Harmful ones, because a gate is shut on the others.
    """
    layer = steering.spec.layers[0]
    rows = training.sample(training.fit, harmful=True, most=_MOST)
    streams = torch.from_numpy(training.features(layer, 0, rows))
    move = moves_of(steering.spec, steering.tensors)[layer]
    return displacement(streams, torch.ones(len(streams), 1), [move]).mean(dim=0)


def find_contrast(training: TrainingSet) -> SteeringContrast | str:
    """Return the contrast, or in words why there is none."""
    tokens = training.refusal_tokens
    if not tokens:
        return f"no steering was fitted: {NO_REFUSALS}"
    rows = np.concatenate([training.sample(training.fit, harmful=label, most=_MOST) for label in (False, True)])
    prompts = training.prompts.subset(rows)
    refuses = refusal_metric(first_token_log_probs(training.chat, prompts), tokens) > 0
    refused, answered = rows[refuses & prompts.harmful], rows[~refuses]
    if min(len(refused), len(answered)) < MINIMUM_PER_CLASS:
        return f"no steering was fitted: the model refuses {len(refused)} of {len(rows)} prompts for their harm"
    layer = _decisive_block(training, tokens, refused, answered)
    return SteeringContrast(training, tokens, layer, refused, answered)


def _decisive_block(training: TrainingSet, tokens: tuple[int, ...], refused: Rows, answered: Rows) -> int:
    """Return the block at which adding the difference in means once makes harmful prompts refused the most."""
    depth = training.chat.num_layers
    layers = [layer for layer in range(depth) if layer + 1 < _DEEPEST * depth] or [0]
    tried = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), _MOST_CANDIDATES)).round().astype(int))
    trial = StrengthSweep.of(training, tokens, _JUDGES)
    gained: dict[int, float] = {}
    for layer in track([layers[index] for index in tried], "finding the block to steer"):
        contrast = SteeringContrast(training, tokens, layer, refused, answered)
        candidate = contrast.vector("candidate", "difference in means", {"vector": contrast.difference})
        gained[layer] = trial.dose(1.0, served(training.chat, candidate, 1.0)).refusal_harmful
    return max(gained, key=lambda layer: gained[layer])
