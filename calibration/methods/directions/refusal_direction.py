"""The refusal direction: the one direction that mediates whether the model refuses (arXiv 2406.11717).

Candidates are differences in means at every template position after the instruction and every block. They are judged by
what they do: refusals vanish when the direction is ablated (`bypass`), appear when it is added (`induce`), and harmless
prompts do not notice the ablation (`kl`). Where no candidate stands linear ablation, affine ablation judges (arXiv
2411.09003): the component is set to the harmless mean instead of zero.

Layers are counted at `resid_post`, so block l here is the paper's input of block l + 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedSteering
from calibration.fitting.training_set import NO_REFUSALS, Rows, TrainingSet
from calibration.methods.directions.directions import difference_in_means, direction_probe
from calibration.methods.directions.refusal_candidates import MAXIMUM_KL, Candidate, CandidateEvaluator
from calibration.methods.directions.refusal_choice import RESULT, choice_study
from calibration.model.abliteration import find_ablation
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.progress import track
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS
from calibration.prompts.template import EncodedPrompts
from probes.manifest import SteeringVector

_METHOD = "difference in means, chosen by ablation and addition"
_MOST_CONTRAST = 128
_MOST_JUDGED = 32
_DEEPEST = 0.8
"""The paper's sample sizes and limit: 128 prompts a class, 32 to choose by, depth below 0.8 L."""
_STRENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""The paper adds the vector once. A model that refuses by a narrow margin needs more, so more is tried where once does
not induce; the strength that did is in the evidence."""


def fit_refusal_direction(training: TrainingSet) -> Fitted:
    """Return probe and steering vector `refusal`, or notes that say why there is none."""
    if ablation := find_ablation(training.chat):
        return _none(f"{ablation.sentence}, so that what it refuses says nothing of a request")
    tokens = training.refusal_tokens
    if not tokens:
        return _none(NO_REFUSALS)
    rows = _contrast_rows(training)
    contrast = training.prompts.subset(rows)
    behaving = (refusal_metric(first_token_log_probs(training.chat, contrast), tokens) > 0) == contrast.harmful
    if min((behaving & contrast.harmful).sum(), (behaving & ~contrast.harmful).sum()) < MINIMUM_PER_CLASS:
        return _none(f"the model treats only {int(behaving.sum())} of {len(rows)} prompts as labelled")
    return _choose(training, rows[behaving], _summon(training, tokens))


def _none(reason: str) -> Fitted:
    return Fitted(notes=(f"no refusal direction: {reason}",), not_asked={RESULT: reason})


def _contrast_rows(training: TrainingSet) -> Rows:
    sides = [training.sample(training.fit, harmful=label, most=_MOST_CONTRAST) for label in (False, True)]
    return np.concatenate(sides)


def _summon(training: TrainingSet, tokens: tuple[int, ...]) -> CandidateEvaluator:
    harmful, harmless = (_behaving(training, tokens, harmful=label) for label in (True, False))
    return CandidateEvaluator(training.chat, tokens, harmful, harmless, first_token_log_probs(training.chat, harmless))


def _behaving(training: TrainingSet, tokens: tuple[int, ...], *, harmful: bool) -> EncodedPrompts:
    """Return selection prompts that the model treats as labelled, as the paper does; all where it treats none so."""
    sample = training.prompts.subset(training.sample(training.select, harmful=harmful, most=_MOST_CONTRAST))
    metric = refusal_metric(first_token_log_probs(training.chat, sample), tokens)
    rows = np.flatnonzero((metric > 0) == harmful)
    return sample.subset((rows if len(rows) else np.arange(len(metric)))[:_MOST_JUDGED])


def _choose(training: TrainingSet, rows: Rows, evaluator: CandidateEvaluator) -> Fitted:
    candidates = [evaluator.ablate(each) for each in track(list(_candidates(training, rows)), "ablating directions")]
    first: list[Candidate] = []
    strongest = -np.inf
    for strength in _STRENGTHS:
        judged = [
            evaluator.add(each, strength) for each in track(candidates, f"adding directions at strength {strength:g}")
        ]
        first = first or judged
        best = _best(judged, evaluator)
        if best is not None:
            fitted = _describe(training, rows, evaluator, best)
            return replace(fitted, studies=(choice_study(training, evaluator, first, best, num_contrast=len(rows)),))
        strongest = max(strongest, *(candidate.induce for candidate in judged))
    return Fitted(
        notes=(
            f"no refusal direction: none of {len(candidates)} candidates induces refusals (best {strongest:.2f}) "
            f"while its ablation changes harmless answers by less than {MAXIMUM_KL} nats",
        ),
        studies=(choice_study(training, evaluator, first, None, num_contrast=len(rows)),),
    )


def _best(judged: Sequence[Candidate], evaluator: CandidateEvaluator) -> Candidate | None:
    """Return the candidate that qualifies with the least bypass; where none does linearly, affine ablation judges."""
    qualified = [each for each in judged if each.qualifies]
    if not qualified:
        inducing = [each for each in judged if each.induce > 0 and not each.is_deep]
        qualified = [each for each in map(evaluator.ablate_affinely, inducing) if each.qualifies]
    return min(qualified, key=lambda candidate: candidate.bypass, default=None)


def _candidates(training: TrainingSet, rows: Rows) -> Iterator[Candidate]:
    offsets, harmful = range(training.instruction_offset), training.harmful[rows]
    for layer in range(training.chat.num_layers):
        is_deep = layer + 1 >= _DEEPEST * training.chat.num_layers
        features = [training.features(layer, offset, rows) for offset in offsets]
        means = np.stack([each[~harmful].mean(axis=0, dtype=np.float64) for each in features])
        for offset in offsets:
            direction = difference_in_means(features[offset], harmful)
            levels = means @ direction / np.linalg.norm(direction)
            yield Candidate(layer, offset, direction, levels.astype(np.float32), is_deep)


def _describe(training: TrainingSet, rows: Rows, evaluator: CandidateEvaluator, best: Candidate) -> Fitted:
    vector = best.vector()
    evidence = _evidence(evaluator, best)
    probe = direction_probe(
        "refusal",
        _METHOD,
        best.direction,
        training.project(best.layer, best.offset, best.direction / np.linalg.norm(best.direction))[rows],
        training.harmful[rows],
        layer=best.layer,
        offset=best.offset,
        evidence=evidence,
    )
    steering = SteeringVector(
        name="refusal",
        method=_METHOD,
        layers=(best.layer,),
        norm=float(vector.norm()),
        cos_refusal=1.0,
        evidence=evidence,
    )
    return Fitted((probe,), (FittedSteering(steering, {"vector": vector.unsqueeze(0)}),))


def _evidence(evaluator: CandidateEvaluator, best: Candidate) -> dict[str, float]:
    """Return what the direction does; `served_strength` is the least strength that induces refusal as served, if any
    does.
    """
    served = {strength: evaluator.induced_as_served(best, strength) for strength in _STRENGTHS}
    enough = [strength for strength, metric in served.items() if metric > 0]
    return {
        "induce": best.induce,
        "strength": best.strength,
        "bypass": best.bypass,
        "kl": best.kl,
        "affine": float(best.is_affine),
        "baseline_harmful": evaluator.refusal(evaluator.harmful),
        "baseline_harmless": evaluator.refusal(evaluator.harmless),
        "induce_served": served[best.strength],
    } | ({"served_strength": enough[0]} if enough else {})


METHOD = Method("refusal_direction", fit_refusal_direction, rank=10, plain=True)
