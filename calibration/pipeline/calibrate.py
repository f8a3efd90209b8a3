"""Calibration: the list of its stages, from prompts to an artifact.

Training prompts fit and choose; validation prompts certify thresholds and fit probabilities; test prompts only report.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from calibration.evaluation.evaluate import Report
from calibration.evaluation.unseen.left_out import require_families
from calibration.pipeline.evidence import assemble, gather_evidence, measure_studies
from calibration.pipeline.inputs import Inputs
from calibration.pipeline.kept import key_of
from calibration.pipeline.settings import PLAIN, Settings
from calibration.pipeline.stages import (
    admit_steering,
    ask_forms,
    fit_methods,
    leave_out_sources,
    record_training,
    report_on_test,
    score_splits,
    to_log_odds,
    watch,
)
from calibration.prompts.prompt_file import PromptFile
from calibration.recording.stage_file import room_for, write_whole
from probes.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished calibration."""

    manifest: Manifest
    report: Report
    not_asked: dict[str, str]
    """Studies that could not be asked, by name, and why."""


def calibrate(model: Path, prompts: Mapping[str, PromptFile], out: Path, settings: Settings = PLAIN) -> Calibration:
    """Fit, certify and test probes for `model`, and write the artifact to `out`. `prompts` has a file for each split.

    Raises `PromptError`, `ModelError` or `CalibrationError`; nothing is written to `out` unless all went well.
    """
    settings.require()
    inputs = Inputs.read(model, prompts, out, settings)
    if settings.leave_one_source_out:
        require_families(inputs.train.value)
    with inputs.work.alone():
        return _through_all_stages(inputs, out, settings)


def _through_all_stages(inputs: Inputs, out: Path, settings: Settings) -> Calibration:
    created = _begun(inputs, settings)

    training = record_training(inputs)
    fitted = fit_methods(inputs, training, settings)
    scored = score_splits(inputs, training, fitted)
    inputs.require_unchanged(settings)
    admitted = admit_steering(inputs, training, fitted, scored, settings)
    scaled = to_log_odds(inputs, admitted, scored)
    watched = watch(inputs, training, scaled, settings)
    report = report_on_test(inputs, scaled, watched, settings)
    forms = ask_forms(inputs, scaled, settings)
    unseen = leave_out_sources(inputs, training, settings)
    measured = measure_studies(inputs, training, scaled, settings)
    evidence = gather_evidence(inputs, training, scaled, report.value, watched.value, forms.value, measured, unseen)
    with room_for(out):
        artifact = assemble(inputs, scaled.value, watched.value, forms.value, evidence, created)
        manifest = artifact.save(out)
    if not settings.keep_work:
        inputs.work.forget()
    return Calibration(manifest, report.value, evidence.not_asked)


def _begun(inputs: Inputs, settings: Settings) -> str:
    """Write down what is calibrated, and return when the first run with these settings began."""
    path = inputs.work.path("settings", key_of("settings", asdict(settings)), ".json")
    if not path.exists():
        encoded = {"train": inputs.train.value, "validation": inputs.validation.value, "test": inputs.test.value}
        content = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": inputs.identity.model_dump(),
            "prompts": {split: len(each.prompts) for split, each in encoded.items()},
            "skipped": {split: each.num_skipped for split, each in encoded.items()},
            "settings": asdict(settings),
        }
        write_whole(path, json.dumps(content, indent=2, default=str) + "\n")
    created: str = json.loads(path.read_text())["created"]
    return created
