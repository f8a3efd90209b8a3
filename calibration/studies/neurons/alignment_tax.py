"""The alignment tax: whether safety and helpfulness live in the same neurons (arXiv 2406.14144, section 5).

The contrast that finds safety neurons on harmful prompts is taken on harmless ones too. Halves of the harmful prompts
say how alike two rankings of the same thing are.
"""

import numpy as np
from scipy.stats import spearmanr

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.methods.neurons.activation_contrast import ActivationContrast, contrast_prompts
from calibration.methods.neurons.ranking import Ranking
from calibration.methods.neurons.safety_neurons import contrast_sample, paired_neurons
from calibration.model.neurons import Neurons

_SHARE = 0.05


def study_alignment_tax(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:  # noqa: ARG001 - studies get it
    """Return how alike the two rankings are. Raises `Skipped` without a partner or without neurons."""
    aligned, partner = paired_neurons(training)
    safety, helpful = (_halves(training, aligned, partner, harmful=label) for label in (True, False))
    across = [_alike(aligned, one, other) for one, other in zip(safety, helpful, strict=True)]
    within = [_alike(aligned, *safety), _alike(aligned, *helpful)]
    return (_study(np.mean(across, axis=0), *within, num_prompts=_num_prompts(training)),)


def _halves(
    training: TrainingSet, aligned: Neurons, partner: Neurons, *, harmful: bool
) -> tuple[ActivationContrast, ActivationContrast]:
    prompts = contrast_sample(training, harmful=harmful)
    first, second = (
        contrast_prompts(aligned, partner, prompts.subset(range(start, len(prompts.prompts), 2))) for start in (0, 1)
    )
    return first, second


def _num_prompts(training: TrainingSet) -> tuple[int, int]:
    harmful, harmless = (len(contrast_sample(training, harmful=label).prompts) // 2 for label in (True, False))
    return harmful, harmless


def _alike(neurons: Neurons, one: ActivationContrast, other: ActivationContrast) -> tuple[float, float, float]:
    """Return the best neurons' overlap, the rank correlation of all scores, and how mean changes of the best
    correlate.
    """
    rankings = [Ranking("change", "change", each.scores, neurons) for each in (one, other)]
    best = [ranking.share(_SHARE) for ranking in rankings]
    candidates, either = rankings[0].candidates, np.union1d(best[0], best[1])
    return (
        len(np.intersect1d(best[0], best[1])) / len(best[0]),
        float(spearmanr(one.scores[candidates], other.scores[candidates]).statistic),
        float(np.corrcoef(one.mean[either], other.mean[either])[0, 1]),
    )


def _study(
    across: tuple[float, ...], safety: tuple[float, ...], helpful: tuple[float, ...], *, num_prompts: tuple[int, int]
) -> StudyResult:
    names = (
        f"overlap of the best {_SHARE:.0%} (by chance {_SHARE:.0%})",
        "Spearman correlation of all change scores",
        "correlation of mean changes among the best",
    )
    return StudyResult(
        name="alignment_tax",
        title="Alignment tax: do safety and helpfulness share their neurons?",
        finding=(
            f"Ranked on harmful and on harmless prompts ({num_prompts[0]} and {num_prompts[1]} a half), the best "
            f"{_SHARE:.0%} have {across[0]:.0%} in common and all scores a rank correlation of {across[1]:.2f}; two "
            f"halves of the harmful prompts have {safety[0]:.0%} and {safety[1]:.2f}. In those neurons the mean "
            f"changes on the two kinds of prompts correlate at {across[2]:.2f}, on the halves of one kind at "
            f"{safety[2]:.2f}."
        ),
        tables=(
            Table(
                name="overlap",
                columns=("measure", "harmful and harmless", "halves of harmful", "halves of harmless"),
                rows=tuple(
                    (name, float(a), float(b), float(c))
                    for name, a, b, c in zip(names, across, safety, helpful, strict=True)
                ),
            ),
        ),
    )


STUDY = Study("alignment_tax", study_alignment_tax, rank=20, uses_partner=True)
