"""The last stages: studies, what a reviewer is shown, and the artifact."""

from collections.abc import Callable
from functools import partial

import torch

from calibration.evaluation.evaluate import Report
from calibration.evaluation.forms.results import FormResults
from calibration.evaluation.separation import SeparationMap, separation_map
from calibration.evaluation.unseen.unseen_sources import COMBINED, UnseenSources
from calibration.fitting.bank import tensors_of
from calibration.fitting.contract import Study
from calibration.fitting.judged import judged_by
from calibration.fitting.metrics import evaluate_scores
from calibration.fitting.study import Skipped, StudyResult
from calibration.fitting.training_set import TrainingSet
from calibration.methods.steering.dose_response import Dose, dose_response
from calibration.methods.watches.watches import CalibratedWatches
from calibration.pipeline.inputs import Inputs
from calibration.pipeline.kept import Kept, json_codec
from calibration.pipeline.settings import Settings
from calibration.pipeline.stages import Scaled
from calibration.prompts.splits import SPLITS
from calibration.registry import studies
from calibration.report.evidence import FILE, Evidence, split_scores
from calibration.studies.causal.signature import RESULT as SIGNATURE
from calibration.studies.causal.signature import signature_study
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.manifest import Manifest, Probe

Measured = tuple[StudyResult, ...] | str
"""What a study found, or why it could not be measured."""
_MEASURED = json_codec(Measured)
_SEPARATION = json_codec(SeparationMap)
_DOSES = json_codec(dict[str, tuple[Dose, ...]])


def measure_studies(
    inputs: Inputs, training: Kept[TrainingSet], scaled: Kept[Scaled], settings: Settings
) -> dict[str, Measured]:
    """Measure every study that is asked for, and where the test prompts lie between harm and refusal."""
    found = {}
    for name, study in studies().items():
        if settings.runs(name):
            kept = inputs.work.keep(
                f"study-{name}", _MEASURED, _measuring(study), training, scaled, title=f"study {name}"
            )
            found[name] = kept.value
    test, harmless = scaled.value.scored.test, scaled.value.scored.validation.harmless(scaled.value.names)
    signature = partial(signature_study, test.prompts, test.requests, scaled.value.found, harmless)
    return found | {SIGNATURE: _or_reason(signature)}


def _measuring(study: Study) -> Callable[[TrainingSet, Scaled], Measured]:
    return lambda training, scaled: _or_reason(partial(study.measure, training, scaled.found))


def _or_reason(measure: Callable[[], tuple[StudyResult, ...]]) -> Measured:
    try:
        return measure()
    except Skipped as skipped:
        return skipped.reason


def gather_evidence(
    inputs: Inputs,
    training: Kept[TrainingSet],
    scaled: Kept[Scaled],
    report: Report,
    watched: CalibratedWatches,
    forms: FormResults,
    measured: dict[str, Measured],
    unseen: UnseenSources | None,
) -> Evidence:
    """Return all that a reviewer is shown."""
    work, own = inputs.work, scaled.value
    separation = work.keep("separation", _SEPARATION, separation_map, training, title="mapping where the classes part")
    doses = work.keep("doses", _DOSES, _doses, training, scaled, title="steering at several strengths")
    test = own.scored.test
    answered = [each for each in measured.values() if not isinstance(each, str)]
    return Evidence(
        report=report,
        separation=separation.value,
        test_scores=split_scores(own.names, test.by(own.names), test.prompts.harmful),
        doses=doses.value,
        studies=(
            *own.found.studies,
            *(study for each in answered for study in each),
            *watched.studies,
            *forms.studies,
        ),
        not_asked={
            **own.found.not_asked,
            **{name: each for name, each in measured.items() if isinstance(each, str)},
            **watched.not_asked,
            **forms.not_asked,
        },
        unseen=unseen,
    )


def _doses(training: TrainingSet, scaled: Scaled) -> dict[str, tuple[Dose, ...]]:
    steering = scaled.found.steering
    return {item.spec.name: dose_response(training, item, training.refusal_tokens) for item in steering}


def assemble(
    inputs: Inputs, scaled: Scaled, watched: CalibratedWatches, forms: FormResults, evidence: Evidence, created: str
) -> Artifact:
    """Return the artifact."""
    found, validation, names = scaled.found, scaled.scored.validation, scaled.names
    tensors = tensors_of(found.probes)
    for item in found.steering:
        tensors |= {f"steering.{item.spec.name}.{name}": tensor for name, tensor in item.tensors.items()}
    tensors |= {
        BENIGN_SCORES: torch.from_numpy(validation.harmless(names)),
        HARMFUL_SCORES: torch.from_numpy(validation.harmful(names)),
        **watched.tensors,
        **{f"{BENIGN_SCORES}.{ending}": torch.from_numpy(each) for ending, each in forms.harmless.items()},
    }
    canary = scaled.scored.canary.by(names)[0].tolist()
    manifest = Manifest(
        name=inputs.identity.architecture,
        created=created,
        fingerprint=inputs.identity,
        arithmetic=inputs.arithmetic,
        template=inputs.template,
        other_endings=tuple(forms.harmless),
        probes=tuple(map(forms.noted, _measured_probes(scaled, evidence.report))),
        steering=tuple(item.spec for item in found.steering),
        watches=watched.watches,
        combinations={COMBINED: evidence.unseen.combination} if evidence.unseen else {},
        canary=dict(zip(names, canary, strict=True)),
        data=tuple(inputs.files[split].digest(split) for split in SPLITS),
        tools=inputs.tools,
    )
    return Artifact(manifest, tensors, {FILE: evidence.to_file()})


def _measured_probes(scaled: Scaled, report: Report) -> list[Probe]:
    """Return the probes with their maps to probabilities, and what they are worth on validation and test prompts."""
    validation = scaled.scored.validation
    probes = []
    for item, platt in zip(scaled.found.probes, scaled.platt, strict=True):
        name = item.spec.name
        rows = judged_by(item.spec, validation.prompts)
        own = evaluate_scores(validation.by([name])[rows, 0], validation.prompts.harmful[rows], "validation")
        evaluation = (own, report.probes[name].evaluation)
        probes.append(item.spec.model_copy(update={"platt": platt, "evaluation": evaluation}))
    return probes
