"""Generation-time activation contrasting: which neurons alignment changed (arXiv 2406.14144, section 3).

The partner M1 answers greedily. Both models then read [prompt + M1's answer], and a neuron's change score is

    S_i^l = sqrt( mean over prompts and positions that predict an answer's token of (a_i^l(M1) - a_i^l(M2))^2 )
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.methods.neurons.ranking import Ranking
from calibration.model.generation import Tokens, generate
from calibration.model.neurons import Neurons, watched
from calibration.prompts.batching import Batch, make_batch, plan_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from probes.errors import CalibrationError

_NEW_TOKENS = 64
"""The paper lets answers run to 256 tokens; most of the change is where an answer begins."""
_BATCH_PROMPTS = 64


@dataclass(frozen=True, slots=True)
class ActivationContrast:
    """How every neuron differs between two models over the same texts."""

    square: npt.NDArray[np.float64]
    """Mean squared difference `[count]`."""
    mean: npt.NDArray[np.float64]
    """Mean difference `[count]`, aligned less partner."""
    num_positions: int

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Change scores `[count]`."""
        return np.sqrt(self.square)


def rank_by_change(aligned: Neurons, partner: Neurons, prompts: EncodedPrompts, name: str = "pair") -> Ranking:
    """Rank neurons by their change scores on the partner's answers to `prompts`. Raises `CalibrationError`."""
    answers = generate(partner.chat, prompts, _NEW_TOKENS)
    contrast = contrast_answers(aligned, partner, prompts.token_ids, answers)
    return Ranking(name, "change between the model and its partner", contrast.scores, aligned)


def contrast_prompts(aligned: Neurons, partner: Neurons, prompts: EncodedPrompts) -> ActivationContrast:
    """Return the contrast on the partner's own greedy answers to `prompts`. Raises `CalibrationError`."""
    return contrast_answers(aligned, partner, prompts.token_ids, generate(partner.chat, prompts, _NEW_TOKENS))


def contrast_answers(
    aligned: Neurons, partner: Neurons, prompts: Sequence[Tokens], answers: Sequence[Tokens]
) -> ActivationContrast:
    """Return the contrast at the positions that predict the tokens of `answers`, both models reading the same texts.

    Only sums are held, and of a batch only the partner's neurons at those positions. Raises `CalibrationError` where a
    difference is NaN or infinite.
    """
    # An answer's last token is predicted, and need not be read.
    texts = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = [len(text) for text in texts]
    square, mean = (np.zeros(aligned.count) for _ in range(2))
    num_positions, limit = 0, aligned.batch_tokens(aligned.count)
    for rows in track(plan_batches(lengths, max_tokens=limit, max_prompts=_BATCH_PROMPTS), "contrasting neurons"):
        batch = make_batch(texts, rows, aligned.chat.device)
        predicted = torch.tensor([len(answers[row]) for row in rows], device=batch.lengths.device)
        place = torch.arange(batch.input_ids.shape[1], device=batch.lengths.device)
        chosen = (place >= (batch.lengths - predicted)[:, None]) & (place < batch.lengths[:, None])
        square_and_mean = _batch_sums(aligned, partner, batch, chosen)
        square += square_and_mean[0]
        mean += square_and_mean[1]
        num_positions += int(chosen.sum())
    return _finite(ActivationContrast(square / num_positions, mean / num_positions, num_positions))


def _batch_sums(aligned: Neurons, partner: Neurons, batch: Batch, chosen: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return sums over the positions `chosen` `[B, T]` of every neuron's squared and plain difference `[2, count]`."""
    layers = range(len(aligned.widths))

    def keep(_layer: int, values: torch.Tensor) -> torch.Tensor:
        return values[chosen]

    def sums(layer: int, values: torch.Tensor) -> torch.Tensor:
        change = values[chosen].float() - before[layer].float()
        return torch.stack([change.square().sum(0, dtype=torch.float64), change.sum(0, dtype=torch.float64)])

    with watched(partner, layers, keep) as before:
        partner.chat.last_logits(batch)
    with watched(aligned, layers, sums) as changes:
        aligned.chat.last_logits(batch)
    return np.asarray(torch.cat([changes[layer] for layer in layers], dim=1).cpu().numpy())


def _finite(contrast: ActivationContrast) -> ActivationContrast:
    if not np.isfinite(contrast.square).all():
        raise CalibrationError(
            "neurons of the model or its partner are NaN or infinite",
            field="partner",
            remedy="load both in the precision that they were trained in",
        )
    return contrast
