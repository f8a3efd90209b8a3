"""Admission: every steering vector is measured in one way, and goes into the artifact only if benign prompts can bear
it.

It is measured on validation prompts. Selection prompts come from the sources that gates were fitted on, and flatter
them: on the lab, one gate costs nothing there and half a nat on prompts of other templates.

The price is the mean KL that the recommended strength puts between steered and untouched answers of harmless prompts,
through the vector's own gate if it has one, as if every benign request were steered: at the first token (`kl_benign`),
and over the first few (`kl_continuation`). Where the greater is over the budget, the vector is left out and a note says
with what number.

One kind is judged otherwise. The refusal direction has no gate and is meant to turn an answer into a refusal, so its
unconditional price says only that it works. A policy can steer with it in no way but behind a rule, and it is judged by
what benign requests then meet: `kl_behind_rule`, the share that a 1 % rule steers times the KL on those that it does
steer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.fitted import Fitted, FittedSteering
from calibration.fitting.metrics import auroc
from calibration.fitting.training_set import NO_REFUSALS, Rows, TrainingSet
from calibration.methods.steering.admission_study import RESULT, Measured, steering_study
from calibration.methods.steering.continuation import Continuations
from calibration.methods.steering.contrast import mean_displacement
from calibration.methods.steering.dose_response import Dose, StrengthSweep, served, strengths_of
from calibration.model.refusal_metric import first_token_log_probs, mean_kl, refusal_metric
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts

KL_BUDGET = 0.1
"""Nats; the limit that the refusal direction's ablation has to keep, too (arXiv 2406.11717)."""
BEHIND_A_RULE = frozenset({"refusal"})
"""Vectors that are judged behind a rule, and not as if every request were steered."""
RULE = 0.01
"""False-positive rate of the rule that such vectors are measured behind."""
_ENOUGH = 0.98
"""Share of harmful prompts refused that is as good as all."""
_SLACK = 0.02
_MOST, _MOST_BENIGN, _MOST_ANSWERS = 64, 256, 32
"""Prompts a class for the curve, harmless ones for the price, and those whose answers are followed."""
_FEWEST_STEERED = 16
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class _Setup:
    """What all vectors are measured on."""

    training: TrainingSet
    trial: StrengthSweep
    benign: EncodedPrompts
    on_benign: torch.Tensor
    """Log-probabilities `[N, V]` of the untouched model's first tokens."""
    answers: Continuations
    flagged: EncodedPrompts | None
    """Harmless prompts that a 1 % rule would steer."""
    refusal: FittedSteering | None
    budget: float


def admit(
    training: TrainingSet,
    found: Fitted,
    prompts: EncodedPrompts,
    scores: npt.NDArray[np.float32],
    budget: float = KL_BUDGET,
    *,
    keep_costly: bool = False,
) -> Fitted:
    """Return `found` with every vector measured, those with an objection left out and noted, and a study of all.

    `prompts` are those to measure on, `scores` `[N, K]` what the K probes gave them. `keep_costly` keeps vectors that
    are over the budget; one that makes the model refuse less is left out in any case, and so is one that cannot be
    measured.
    """
    if not found.steering:
        return _not_studied(found, "no steering vector was fitted")
    if not training.refusal_tokens:
        reasons = {each.spec.name: f"there are no refusals to measure it by: {NO_REFUSALS}" for each in found.steering}
        return _not_studied(_without(found, reasons), NO_REFUSALS)
    bench = _prepare(training, found, prompts, scores, budget)
    measured = [_measure(bench, each, keep_costly) for each in track(found.steering, "measuring steering vectors")]
    study = steering_study(measured, budget, len(bench.benign.prompts))
    kept = replace(found, steering=tuple(each.steering for each in measured), studies=(*found.studies, study))
    return _without(kept, {each.steering.spec.name: each.objection for each in measured if each.objection})


def _not_studied(found: Fitted, reason: str) -> Fitted:
    return replace(found, not_asked={**found.not_asked, RESULT: reason})


def _without(found: Fitted, reasons: Mapping[str, str]) -> Fitted:
    """Leave out the vectors that there are reasons against, and note these."""
    return replace(
        found,
        steering=tuple(each for each in found.steering if each.spec.name not in reasons),
        notes=(*found.notes, *(f"steering vector {name} is left out: {reason}" for name, reason in reasons.items())),
    )


def _prepare(
    training: TrainingSet, found: Fitted, prompts: EncodedPrompts, scores: npt.NDArray[np.float32], budget: float
) -> _Setup:
    rng, chat = np.random.default_rng(_SEED), training.chat
    harmful, harmless = (rng.permutation(np.flatnonzero(prompts.harmful == label)) for label in (True, False))
    judged, benign = (
        prompts.subset(np.sort(rows[:most])) for rows, most in ((harmful, _MOST), (harmless, _MOST_BENIGN))
    )
    trial = StrengthSweep.on(chat, training.refusal_tokens, judged, prompts.subset(np.sort(harmless[:_MOST])))
    flagged = _flagged(prompts, scores) if len(found.probes) else None
    return _Setup(
        training,
        trial,
        benign,
        first_token_log_probs(chat, benign),
        Continuations.of(chat, prompts.subset(np.sort(harmless[:_MOST_ANSWERS]))),
        prompts.subset(flagged) if flagged is not None else None,
        next((each for each in found.steering if each.spec.name == "refusal"), None),
        budget,
    )


def _flagged(prompts: EncodedPrompts, scores: npt.NDArray[np.float32]) -> Rows:
    """Return the harmless prompts that score highest on the best probe: 1 % of them, and no fewer than 16."""
    areas = [auroc(each[prompts.harmful], each[~prompts.harmful]) for each in scores.T]
    best, harmless = scores[:, int(np.argmax(areas))], np.flatnonzero(~prompts.harmful)
    count = max(round(RULE * len(harmless)), _FEWEST_STEERED)
    return np.sort(harmless[np.argsort(-best[harmless])[:count]])


def _measure(bench: _Setup, steering: FittedSteering, keep_costly: bool) -> Measured:
    curve = [bench.trial.untouched()]
    for strength in strengths_of(steering):
        curve.append(bench.trial.dose(strength, served(bench.trial.chat, steering, strength)))
        if curve[0].refused_harmful < _ENOUGH <= curve[-1].refused_harmful:
            break
    chosen = recommended(curve)
    evidence = _evidence(bench, steering, curve[0], chosen)
    spec = steering.spec.model_copy(
        update={"cos_refusal": _cosine(bench, steering), "evidence": steering.spec.evidence | evidence}
    )
    objection = _objection(spec.name, curve[0], chosen, evidence, bench.budget, keep_costly)
    return Measured(FittedSteering(spec, steering.tensors), tuple(curve), objection)


def _cosine(bench: _Setup, steering: FittedSteering) -> float:
    """Return the cosine of what the vector adds with the refusal vector; 0 where none was fitted to compare with."""
    if bench.refusal is None:
        return 0.0
    displaced = mean_displacement(steering, bench.training)
    return float(torch.cosine_similarity(displaced, bench.refusal.vector[0], dim=0))


def recommended(curve: Sequence[Dose]) -> Dose:
    """Return the least dose that refuses nearly as many harmful prompts as the best one does.

    Where the untouched model refuses them all, no dose can show what it adds, and strength 1 is taken.
    """
    if curve[0].refused_harmful >= _ENOUGH:
        return next(dose for dose in curve if dose.strength == 1.0)
    best = max(dose.refused_harmful for dose in curve[1:])
    return next(dose for dose in curve[1:] if dose.refused_harmful >= min(best, _ENOUGH))


def _evidence(bench: _Setup, steering: FittedSteering, before: Dose, dose: Dose) -> dict[str, float]:
    chat, tokens = bench.trial.chat, bench.trial.tokens
    intervention = served(chat, steering, dose.strength)
    steered = first_token_log_probs(chat, bench.benign, intervention)
    evidence = {
        "recommended": dose.strength,
        "refused_harmful": dose.refused_harmful,
        "refused_harmful_before": before.refused_harmful,
        "refused_benign": float((refusal_metric(steered, tokens) > 0).mean()),
        "refused_benign_before": float((refusal_metric(bench.on_benign, tokens) > 0).mean()),
        "kl_benign": mean_kl(bench.on_benign, steered),
        "kl_continuation": bench.answers.kl(steering, dose.strength),
    }
    if bench.flagged is None:
        return evidence
    untouched = first_token_log_probs(chat, bench.flagged)
    on_flagged = mean_kl(untouched, first_token_log_probs(chat, bench.flagged, intervention))
    return evidence | {"kl_flagged": on_flagged, "kl_behind_rule": RULE * on_flagged}


def _objection(
    name: str, before: Dose, dose: Dose, evidence: dict[str, float], budget: float, keep_costly: bool
) -> str | None:
    at = f"at strength {dose.strength:g}"
    if dose.refused_harmful < before.refused_harmful - _SLACK:
        refused = f"{dose.refused_harmful:.0%} of harmful prompts are refused"
        return f"{at} {refused}, and {before.refused_harmful:.0%} without it"
    if before.refused_harmful < _ENOUGH and dose.refused_harmful <= before.refused_harmful:
        return (
            f"at no strength are more than the {before.refused_harmful:.0%} of harmful prompts refused that are anyway"
        )
    price, where = _price(name, evidence)
    if price > budget and not keep_costly:
        return f"{at} it changes {where} by {price:.2f} nats, and the budget is {budget:g}"
    return None


def _price(name: str, evidence: dict[str, float]) -> tuple[float, str]:
    if name in BEHIND_A_RULE and "kl_behind_rule" in evidence:
        return evidence["kl_behind_rule"], "the first token of harmless prompts behind a 1 % rule"
    if evidence["kl_benign"] >= evidence["kl_continuation"]:
        return evidence["kl_benign"], "the first token of harmless prompts"
    return evidence["kl_continuation"], "a token of answers to harmless prompts"
