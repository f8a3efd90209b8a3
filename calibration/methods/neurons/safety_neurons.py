"""Safety neurons: the MLP neurons in which alignment, or the sight of harm, shows most (arXiv 2406.14144).

With a partner they are ranked by what alignment changed (`pair`); always, by how they tell refused from answered
prompts (`single`, `auroc`). A logistic regression on the best of them at the last prompt token is probe `neurons`.
"""

from collections.abc import Sequence

import numpy as np

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Chart, Series, Skipped, StudyResult, required_of_the_model
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.neurons.activation_contrast import rank_by_change
from calibration.methods.neurons.neuron_probe import fit_neuron_probe
from calibration.methods.neurons.ranking import Ranking
from calibration.methods.neurons.separation import rank_by_separation
from calibration.model.neurons import Neurons
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS
from calibration.prompts.template import EncodedPrompts
from probes.errors import ModelError

MOST_CONTRAST = 200
"""Harmful prompts on which the pair is contrasted; the paper's number."""
_MOST_SEPARATED = 500
"""Prompts per class by which single neurons are ranked."""
_MOST_DRAWN, _MOST_BLOCKS = 60, 8
"""Points of a curve of sorted scores, and curves of a chart."""


def fit_safety_neurons(training: TrainingSet) -> Fitted:
    """Return probe `neurons` with its studies, or a note where the model has no such site.

    Raises `CalibrationError`.
    """
    try:
        neurons = Neurons.of(training.chat)
        partner = Neurons.of(training.partner) if training.partner else None
    except ModelError as error:
        return _none(error.problem)
    if len(set(neurons.widths)) > 1:
        return _none("the model's blocks differ in their numbers of neurons")
    prompts, note = behaving_prompts(training, training.refusal_tokens)
    rankings = list(rank_by_separation(neurons, prompts))
    if partner:
        rankings.insert(0, rank_by_change(neurons, partner, contrast_sample(training, harmful=True)))
    probe, sweep = fit_neuron_probe(training, neurons, rankings)
    return Fitted(
        probes=(probe,),
        notes=tuple(
            each for each in (note, None if partner else "safety neurons: no patching without --partner") if each
        ),
        studies=(_curves(rankings), sweep),
    )


def _none(reason: str) -> Fitted:
    return Fitted(
        notes=(f"no safety neurons: {reason}",), not_asked=dict.fromkeys(("safety_neurons", "neuron_count"), reason)
    )


def paired_neurons(training: TrainingSet) -> tuple[Neurons, Neurons]:
    """Return the neurons of the model and of its partner, for a study of both. Raises `Skipped`."""
    if training.partner is None:
        raise Skipped("it compares the model with a partner, and none was given (--partner)")
    with required_of_the_model():
        return Neurons.of(training.chat), Neurons.of(training.partner)


def contrast_sample(training: TrainingSet, *, harmful: bool) -> EncodedPrompts:
    """Return the fit prompts of a class on which models are contrasted."""
    return training.prompts.subset(training.sample(training.fit, harmful=harmful, most=MOST_CONTRAST))


def _sample(training: TrainingSet, most: int) -> Rows:
    sides = [training.sample(training.fit, harmful=label, most=most) for label in (False, True)]
    return np.sort(np.concatenate(sides))


def behaving_prompts(training: TrainingSet, tokens: Sequence[int]) -> tuple[EncodedPrompts, str | None]:
    """Return fit prompts that the model treats as labelled; all of them, and a note, where too few are."""
    prompts = training.prompts.subset(_sample(training, _MOST_SEPARATED))
    if tokens:
        metric = refusal_metric(first_token_log_probs(training.chat, prompts), tokens)
        behaving = (metric > 0) == prompts.harmful
        sides = [int((behaving & (prompts.harmful == label)).sum()) for label in (False, True)]
        if min(sides) >= MINIMUM_PER_CLASS:
            return prompts.subset(np.flatnonzero(behaving)), None
    return prompts, (
        "safety neurons: ranked by the labels alone, because the model does not refuse enough harmful prompts, or "
        "refuses almost all"
    )


def _curves(rankings: list[Ranking]) -> StudyResult:
    first = rankings[0]
    best = first.share(0.05)
    counts = np.bincount(first.neurons.layer_of(best), minlength=len(first.neurons.widths))
    mass = float(first.scores[best].sum() / first.scores[first.candidates].sum())
    profile = ", ".join(f"block {layer}: {count}" for layer, count in enumerate(counts) if count)
    return StudyResult(
        name="safety_neurons",
        title="Safety neurons: how their scores fall off",
        finding=(
            f"Of {len(first.candidates)} neurons (the last block's left out) the best 5 % by {first.what} hold "
            f"{mass:.0%} of all scores. They lie in {profile}."
        ),
        charts=tuple(_curve(ranking) for ranking in rankings),
    )


def _curve(ranking: Ranking) -> Chart:
    starts = ranking.neurons.starts
    series = []
    depth = max(len(ranking.neurons.widths) - 1, 1)
    for layer in np.unique(np.linspace(0, depth - 1, min(depth, _MOST_BLOCKS)).round().astype(int)).tolist():
        ordered = np.sort(ranking.scores[starts[layer] : starts[layer + 1]])[::-1]
        drawn = np.unique(np.geomspace(1, len(ordered), min(len(ordered), _MOST_DRAWN)).astype(int))
        series.append(
            Series(name=f"block {layer}", x=tuple(drawn.tolist()), y=tuple(np.round(ordered[drawn - 1], 6).tolist()))
        )
    return Chart(
        name=ranking.name,
        caption=f"Neurons of a block, sorted by {ranking.what}; at most {_MOST_BLOCKS} blocks, evenly spread.",
        x_label="rank within the block",
        y_label="score",
        series=tuple(series),
        log_x=True,
    )


METHOD = Method("safety_neurons", fit_safety_neurons, rank=80, uses_partner=True)
