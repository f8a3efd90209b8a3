"""The pipeline: a model and three prompt files in, an artifact out, in numbered stages that each leave a file.

    01-inputs.json              what goes in
    02-activations/             residual streams of the training prompts
    03-<method>.safetensors     probes and steering vectors
    04-scores-<split>…          request scores, by the arithmetic that serves
    04-admitted.safetensors     what is left once steering vectors were measured
    05-evaluation.json          the report on the test split
    05-forms.safetensors        what the probes make of requests in other forms
    06-<study>.json             what was learned once everything was fitted, or why it could not be asked
    07-unseen/                  one file per source left out, where that was asked for
    07-answers/                 the model's answers, batch by batch, where they are to be watched
    08-evidence.json            all that a reviewer is shown

Training prompts fit and choose; validation prompts certify thresholds and fit probabilities; test prompts only report.
An interrupted run goes on from its last file.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file

from calibration.evaluation.controls import control_notes, random_probes, report_controls, shuffled_probes
from calibration.evaluation.evaluate import Report, evaluate
from calibration.evaluation.forms.results import FormResults, ask_in_forms
from calibration.evaluation.separation import separation_map
from calibration.evaluation.unseen.left_out import require_families
from calibration.evaluation.unseen.unseen_sources import COMBINED, UnseenSources, unseen_sources
from calibration.fitting.bank import bank_of, tensors_of, uncertified
from calibration.fitting.fitted import Fitted, FittedProbe, load_fitted, merge, save_fitted
from calibration.fitting.logit_scale import apply, fold, logit_maps
from calibration.fitting.metrics import evaluate_scores
from calibration.fitting.platt import fit_platt
from calibration.fitting.study import Skipped, StudyResult
from calibration.fitting.training_set import TrainingSet
from calibration.methods.steering.admission import KL_BUDGET, admit
from calibration.methods.steering.dose_response import Dose, dose_response
from calibration.methods.watches.watches import Watched, require_tokens, watch_answers
from calibration.model.arithmetic import name_of
from calibration.model.chat_model import ChatModel
from calibration.model.partner import load_partner
from calibration.prompts.near_duplicates import leakage_notes
from calibration.prompts.progress import stage
from calibration.prompts.prompt_file import (
    MINIMUM_PER_CLASS,
    Prompt,
    PromptFile,
    load_prompts,
    require_classes,
    require_disjoint,
)
from calibration.prompts.template import EncodedPrompts, encode_prompts, read_template, template_suffix
from calibration.prompts.wrapping import wrap_prompts
from calibration.recording.activations import Where, record
from calibration.recording.engine_source import IN_PROCESS, EngineSource, require_engine
from calibration.recording.ray_source import RayCluster, Replica
from calibration.recording.request_scores import RequestScores, score_prompts
from calibration.recording.stage_file import room_for, write_whole, written_whole
from calibration.registry import (
    methods,
    plain,
    refitted,
    require_known,
    require_method,
    studies,
    users_of_a_partner,
)
from calibration.report.evidence import FILE as EVIDENCE
from calibration.report.evidence import Evidence, split_scores
from calibration.studies.causal.signature import RESULT as SIGNATURE
from calibration.studies.causal.signature import signature_study
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.canary import canary_prompt
from probes.errors import CalibrationError
from probes.fingerprint import Fingerprint, fingerprint
from probes.manifest import Manifest, Platt, Probe
from probes.scoring import ProbeBank
from probes.template import Template

_ANSWER: TypeAdapter[tuple[StudyResult, ...] | str] = TypeAdapter(tuple[StudyResult, ...] | str)
"""What a study found, or why it could not be asked."""
WORK = ".foreguard-work"
SPLITS = ("train", "validation", "test")
_CANARY = "canary"
_MINIMA = {"train": MINIMUM_PER_CLASS, "validation": MINIMUM_PER_CLASS, "test": 1}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a calibration can be told beyond its model and its prompts."""

    dtype: str = "auto"
    """`auto` computes in the model's own precision."""
    device: str = "cpu"
    limit: int | None = None
    """Most training prompts per class; validation and test are always used whole."""
    leave_one_source_out: bool = False
    """Also fit without each source in turn, and measure on it."""
    skip_long: bool = False
    """Leave out prompts longer than the model's context instead of refusing them."""
    keep_work: bool = False
    partner: Path | None = None
    """The same model before or after its alignment, for contrasts."""
    kl_budget: float = KL_BUDGET
    """Most that a steering vector may change harmless first tokens, in nats, to be put into the artifact."""
    forms: int = 100
    """Test requests per class that are asked in each form; none: no form is asked but plain chat."""
    keep_costly_steering: bool = False
    """Put vectors over the budget into the artifact all the same."""
    ray: str | None = None
    """Address of a Ray cluster whose workers read the training prompts' activations."""
    engine: str = IN_PROCESS
    """Who computes the training prompts' activations: `hf`, or an engine of entry point group `foreguard.engines`."""
    engine_args: tuple[str, ...] = ()
    """The engine's own arguments."""
    wrap: float = 0.0
    """Share of single-turn training prompts that are added once more inside templates and jailbreak wrappers."""
    watch_answers: int | None = None
    """Most tokens of the answers that watches are calibrated for; no watches where there is none."""
    full: bool = False
    """Fit every method, ask every study, and measure every control, however long it takes."""
    also: tuple[str, ...] = ()
    """Names of methods and studies to run beside the methods of a plain calibration."""
    only: tuple[str, ...] | None = None
    """Names of the methods and studies to run, and no others; it goes with neither `full` nor `also`."""

    def runs(self, name: str) -> bool:
        """Whether a method or a study is asked for."""
        if self.only is not None:
            return name in self.only
        return self.full or name in plain() or name in self.also

    def require_one_choice(self) -> None:
        """Raise `CalibrationError` unless what is to run exists, is said in one way, and has a use for what was given."""
        require_known(self.also, "--also")
        if self.only is not None:
            self._require_only(self.only)
        if self.partner and not any(map(self.runs, users_of_a_partner())):
            raise CalibrationError(
                "nothing that is to run compares the model with a partner",
                field="--partner",
                remedy=f"add --full, or --also with one of {', '.join(users_of_a_partner())}",
            )

    def _require_only(self, names: tuple[str, ...]) -> None:
        if self.full or self.also:
            other = "--full" if self.full else "--also"
            raise CalibrationError(
                f"{other} asks for more than the names given", field="--only", remedy=f"leave out --only, or {other}"
            )
        require_known(names, "--only")
        require_method(names)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A finished calibration."""

    manifest: Manifest
    report: Report
    not_asked: dict[str, str]
    """Studies that could not be asked, by name, and why."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A calibration under way."""

    chat: ChatModel
    fingerprint: Fingerprint
    files: dict[str, PromptFile]
    encoded: dict[str, EncodedPrompts]
    work: Path
    tools: dict[str, str]
    partner: ChatModel | None
    source: EngineSource | RayCluster | None
    """Who reads the training prompts' activations and scores the others, where it is not this process."""
    template: Template
    """The chat template's tokens."""

    @property
    def arithmetic(self) -> str:
        """What the passes that thresholds are certified by compute in."""
        return self.fingerprint.dtype if isinstance(self.source, EngineSource) else name_of(self.chat.arithmetic)


def calibrate(
    model: Path, train: Path, validation: Path, test: Path, out: Path, settings: Settings = Settings()
) -> Calibration:
    """Fit, certify and test probes for `model`, and write the artifact to `out`.

    Raises `PromptError`, `ModelError` or `CalibrationError`; nothing is written to `out` unless all went well.
    """
    _require_one_source(settings)
    if not 0 <= settings.wrap <= 1:
        raise CalibrationError(
            f"{settings.wrap} is no share of the training prompts", field="--wrap", remedy="give a number from 0 to 1"
        )
    require_tokens(settings.watch_answers)
    settings.require_one_choice()
    if settings.leave_one_source_out:
        refitted(list(filter(settings.runs, methods())))
    with stage("reading the prompts and the model's fingerprint"):
        files = _read_files(train, validation, test)
        identity = fingerprint(model, dtype=None if settings.dtype == "auto" else settings.dtype)
    with stage("loading the model"):
        chat = ChatModel.load(model, dtype=settings.dtype, device=settings.device)
        partner = (
            load_partner(chat, settings.partner, dtype=settings.dtype, device=settings.device)
            if settings.partner
            else None
        )
    work = _work_folder(out, identity, files, settings, name_of(chat.arithmetic))
    source = _source(chat, model, identity, work, settings)
    encoded, template = _encode(chat, files, settings), read_template(chat.tokenizer)
    run = _Run(chat, identity, files, encoded, work, _tools(settings), partner, source, template)
    if settings.leave_one_source_out:
        require_families(run.encoded["train"])
    created = _write_inputs(run, settings)
    training = _read_activations(run)
    found = _fit(run, training, settings)
    _require_probes(found)
    controls = [*random_probes(found.probes[0].spec, chat.hidden_size), *_shuffled(found, training)]
    scoring = uncertified(identity, [*found.probes, *controls], run.template)
    scored = _scored(run, scoring, training)
    _require_unchanged(run, model, settings)
    found = _admitted(run, training, found, scored["validation"], settings)
    found, scored = _in_logits(run, found, scored)
    watched = _watched(run, training, found, settings)
    with stage("evaluating"):
        names = [probe.name for probe in scoring.manifest.probes]
        report = _report(run, names, scored, found, watched.notes, embed=settings.full)
    forms = _forms(run, found, scored["validation"], settings)
    unseen = _unseen(run, training, settings)
    evidence = _evidence(run, training, found, scored, report, settings, watched, forms).model_copy(
        update={"unseen": unseen}
    )
    with room_for(out):
        manifest = _assemble(run, found, scored, report, created, evidence, watched, forms).save(out)
    if not settings.keep_work:
        shutil.rmtree(work)
        if not any(work.parent.iterdir()):
            work.parent.rmdir()
    return Calibration(manifest, report, evidence.not_asked)


def _read_files(train: Path, validation: Path, test: Path) -> dict[str, PromptFile]:
    files = dict(zip(SPLITS, map(load_prompts, (train, validation, test)), strict=True))
    for split, file in files.items():
        require_classes(file.harmful, file.name, _MINIMA[split])
    require_disjoint(list(files.values()))
    return files


def _work_folder(
    out: Path, identity: Fingerprint, files: dict[str, PromptFile], settings: Settings, arithmetic: str
) -> Path:
    """Name the work by all that decides its content, so that a resumed run can never mix two."""
    content = {
        "model": identity.model_dump(),
        "prompts": {split: file.sha256 for split, file in files.items()},
        "settings": asdict(settings) | {"keep_work": None, "leave_one_source_out": None, "partner": None, "ray": None},
        "partner": fingerprint(settings.partner).model_dump() if settings.partner else None,
        "tools": _tools(settings),
        "arithmetic": arithmetic,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    work = out.parent / WORK / key
    work.mkdir(parents=True, exist_ok=True)
    return work


def _require_one_source(settings: Settings) -> None:
    require_engine(settings.engine, settings.engine_args)
    if settings.engine != IN_PROCESS and settings.ray is not None:
        raise CalibrationError("an engine is not spread over Ray", field="--ray", remedy="leave out --ray, or --engine")


def _require_probes(found: Fitted) -> None:
    """Raise `CalibrationError` where what was asked for gave steering vectors or notes only."""
    if not found.probes:
        raise CalibrationError(
            "no probe was found" + "".join(f"; {note}" for note in found.notes),
            field="--only",
            remedy="ask for another method too: --only classifiers always finds some",
        )


def _source(
    chat: ChatModel, model: Path, identity: Fingerprint, work: Path, settings: Settings
) -> EngineSource | RayCluster | None:
    if settings.engine != IN_PROCESS:
        arguments = settings.engine_args
        return EngineSource.named(settings.engine, arguments, model=model, dtype=settings.dtype, folder=work, chat=chat)
    if settings.ray is None:
        return None
    arithmetic = name_of(chat.arithmetic)
    replica = Replica(str(model), settings.dtype, settings.device, arithmetic, identity, torch.get_num_threads())
    return RayCluster(settings.ray, replica)


def _encode(chat: ChatModel, files: dict[str, PromptFile], settings: Settings) -> dict[str, EncodedPrompts]:
    encoded = {
        split: encode_prompts(chat.tokenizer, file, chat.context, skip_long=settings.skip_long)
        for split, file in files.items()
    }
    for split, kept in encoded.items():  # --skip-long may have taken the last prompts of a class
        require_classes(kept.harmful, files[split].name, _MINIMA[split])
    if settings.limit is not None:
        train = encoded["train"]
        rng = np.random.default_rng(0)
        sides = [rng.permutation(np.flatnonzero(train.harmful == label))[: settings.limit] for label in (False, True)]
        encoded["train"] = train.subset(np.sort(np.concatenate(sides)))
    encoded["train"] += _wrapped(chat, encoded["train"], settings.wrap)
    return encoded


def _wrapped(chat: ChatModel, train: EncodedPrompts, share: float) -> EncodedPrompts:
    """Return wrapped copies of training prompts, but for those that are then longer than the model's context."""
    return encode_prompts(
        chat.tokenizer, replace(train.file, prompts=wrap_prompts(train.prompts, share)), chat.context, skip_long=True
    )


def _require_unchanged(run: _Run, model: Path, settings: Settings) -> None:
    """Raise `CalibrationError`, and forget the run, when the model's files are no longer those that it began with.

    Weights are mapped from their file, so a file written over in place changes the model in the middle of a run.
    """
    if fingerprint(model, dtype=None if settings.dtype == "auto" else settings.dtype) != run.fingerprint:
        shutil.rmtree(run.work)
        raise CalibrationError(
            "the model's files changed while it was being read",
            field="model",
            remedy="calibrate again when nothing writes to the model's folder",
        )


def _write_inputs(run: _Run, settings: Settings) -> str:
    path = run.work / "01-inputs.json"
    if not path.exists():
        content = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": run.fingerprint.model_dump(),
            "prompts": {split: len(encoded.prompts) for split, encoded in run.encoded.items()},
            "skipped": {split: encoded.num_skipped for split, encoded in run.encoded.items()},
            "watch_answers": settings.watch_answers,
        }
        write_whole(path, json.dumps(content, indent=2) + "\n")
    created: str = json.loads(path.read_text())["created"]
    return created


def _read_activations(run: _Run) -> TrainingSet:
    offset = len(template_suffix(run.chat.tokenizer))
    where: tuple[Where, ...] = (*range(offset + 1), "mean")
    with stage("reading activations"):
        recording = record(run.chat, run.encoded["train"], where, run.work / "02-activations", source=run.source)
    return TrainingSet.split(run.chat, run.encoded["train"], recording, offset, run.partner)


def _fit(run: _Run, training: TrainingSet, settings: Settings) -> Fitted:
    parts = []
    for name, method in methods().items():
        if not settings.runs(name):
            continue
        path = run.work / f"03-{name}.safetensors"
        if not path.exists():
            with stage(f"fitting {name}"):
                save_fitted(method.fit(training), path)
        parts.append(load_fitted(path))
    return merge(parts)


def _admitted(run: _Run, training: TrainingSet, found: Fitted, validation: RequestScores, settings: Settings) -> Fitted:
    """Leave out the steering vectors that benign validation prompts cannot bear."""
    path = run.work / "04-admitted.safetensors"
    if not path.exists():
        scores = validation.scores[:, : len(found.probes)]
        kept = settings.keep_costly_steering
        prompts = run.encoded["validation"]
        with stage("measuring steering vectors"):
            save_fitted(admit(training, found, prompts, scores, settings.kl_budget, keep_costly=kept), path)
    return load_fitted(path)


def _diagnose(
    run: _Run, training: TrainingSet, found: Fitted, settings: Settings
) -> dict[str, tuple[StudyResult, ...] | str]:
    """Return by study what it found, or why it could not be asked."""
    answers: dict[str, tuple[StudyResult, ...] | str] = {}
    for name, study in studies().items():
        if not settings.runs(name):
            continue
        path = run.work / f"06-{name}.json"
        if not path.exists():
            with stage(f"study {name}"):
                write_whole(path, _ANSWER.dump_json(_answer(partial(study.measure, training, found))).decode())
        answers[name] = _ANSWER.validate_json(path.read_text())
    return answers


def _answer(ask: Callable[[], tuple[StudyResult, ...]]) -> tuple[StudyResult, ...] | str:
    try:
        return ask()
    except Skipped as skipped:
        return skipped.reason


def _shuffled(found: Fitted, training: TrainingSet) -> list[FittedProbe]:
    logistic = next((probe.spec for probe in found.probes if probe.spec.name == "logistic"), None)
    return shuffled_probes(logistic, training) if logistic else []


def _scored(run: _Run, probes: Artifact, training: TrainingSet) -> dict[str, RequestScores]:
    """Score the splits that were not trained on, and with the validation prompts the canary: by whoever certifies."""
    validation = _score(run, probes, "validation", run.encoded["validation"] + _canary(run), training)
    test = _score(run, probes, "test", run.encoded["test"], training)
    return {"validation": validation.part(slice(-1)), _CANARY: validation.part(slice(-1, None)), "test": test}


def _canary(run: _Run) -> EncodedPrompts:
    config: Any = run.chat.model.config
    prompt = Prompt(_CANARY, 0, (), is_harmful=False, category=None, source=None)
    token_ids = tuple(canary_prompt(config.get_text_config().vocab_size, run.template))
    return EncodedPrompts(run.files["validation"], (prompt,), (token_ids,))


def _score(run: _Run, probes: Artifact, split: str, prompts: EncodedPrompts, training: TrainingSet) -> RequestScores:
    path = run.work / f"04-scores-{split}.safetensors"
    if not path.exists():
        title, tokens = f"scoring {split} prompts", training.refusal_tokens
        with stage(title):
            if run.source is not None:
                scored = run.source.score(prompts, probes, tokens, title)
            else:
                bank = ProbeBank.from_artifact(probes)
                scored = score_prompts(run.chat, bank, prompts, refusal_tokens=tokens, title=title)
        with written_whole(path) as staging:
            save_file({"scores": scored.scores, "refusal": scored.refusal}, staging)
    content = load_file(path)
    return RequestScores(content["scores"], content["refusal"])


def _in_logits(run: _Run, found: Fitted, scored: dict[str, RequestScores]) -> tuple[Fitted, dict[str, RequestScores]]:
    """Put every probe and its scores on the scale of log-odds, by the validation split."""
    maps = logit_maps(scored["validation"].scores[:, : len(found.probes)], run.encoded["validation"].harmful)
    rescaled = {split: replace(each, scores=apply(maps, each.scores)) for split, each in scored.items()}
    return replace(found, probes=fold(found.probes, maps)), rescaled


def _watched(run: _Run, training: TrainingSet, found: Fitted, settings: Settings) -> Watched:
    """Let the model answer, where answers are to be watched."""
    if settings.watch_answers is None:
        return Watched()
    splits = {split: run.encoded[split] for split in ("validation", "test")}
    with stage("calibrating watches of answers"):
        return watch_answers(training, found, splits, settings.watch_answers, run.work / "07-answers")


def _unseen(run: _Run, training: TrainingSet, settings: Settings) -> UnseenSources | None:
    """Leave out one source at a time, where that was asked for."""
    if not settings.leave_one_source_out:
        return None
    with stage("leaving out one source at a time"):
        asked, tokens = refitted(list(filter(settings.runs, methods()))), training.refusal_tokens
        return unseen_sources(training, run.work / "07-unseen", asked, tokens, embed=settings.full)


def _forms(run: _Run, found: Fitted, validation: RequestScores, settings: Settings) -> FormResults:
    """Ask the same requests in other forms."""
    path = run.work / "05-forms.safetensors"
    if not path.exists():
        with stage("asking in other forms"):
            results = ask_in_forms(
                run.chat,
                bank_of(run.fingerprint, found.probes, run.template),
                run.encoded["validation"],
                run.encoded["test"],
                validation.scores[~run.encoded["validation"].harmful, : len(found.probes)],
                settings.forms,
            )
        results.save(path)
    return FormResults.load(path)


def _report(
    run: _Run,
    names: Sequence[str],
    scored: dict[str, RequestScores],
    found: Fitted,
    more_notes: Sequence[str],
    *,
    embed: bool,
) -> Report:
    path = run.work / "05-evaluation.json"
    if not path.exists():
        test, num_probes = run.encoded["test"], len(found.probes)
        benign = scored["validation"].scores[~run.encoded["validation"].harmful]
        controls = report_controls(test, scored["test"], names, train=run.encoded["train"], embed=embed)
        report = evaluate(
            test,
            scored["test"].scores,
            names[:num_probes],
            benign,
            split="test",
            controls=controls,
            platt=_platt(run, scored["validation"].scores[:, :num_probes]),
            notes=(
                *found.notes,
                *more_notes,
                *control_notes(controls, embed=embed),
                *leakage_notes(list(run.files.values())),
            ),
        )
        write_whole(path, report.model_dump_json(indent=2) + "\n")
    return Report.model_validate_json(path.read_text())


def _evidence(
    run: _Run,
    training: TrainingSet,
    found: Fitted,
    scored: dict[str, RequestScores],
    report: Report,
    settings: Settings,
    watched: Watched,
    forms: FormResults,
) -> Evidence:
    path = run.work / "08-evidence.json"
    if not path.exists():
        test, benign = scored["test"], scored["validation"].scores[~run.encoded["validation"].harmful]
        answers = _diagnose(run, training, found, settings)
        answers[SIGNATURE] = _answer(partial(signature_study, run.encoded["test"], test, found, benign))
        with stage("mapping where the classes part"):
            separation = separation_map(training)
        evidence = Evidence(
            report=report,
            separation=separation,
            test_scores=split_scores(
                [probe.spec.name for probe in found.probes], test.scores, run.encoded["test"].harmful
            ),
            doses=_doses(training, found),
            studies=(
                *found.studies,
                *(study for answer in answers.values() if not isinstance(answer, str) for study in answer),
                *watched.studies,
                *forms.studies,
            ),
            not_asked={
                **found.not_asked,
                **{name: answer for name, answer in answers.items() if isinstance(answer, str)},
                **watched.not_asked,
                **forms.not_asked,
            },
        )
        write_whole(path, evidence.to_file().decode())
    return Evidence.model_validate_json(path.read_text())


def _doses(training: TrainingSet, found: Fitted) -> dict[str, tuple[Dose, ...]]:
    with stage("steering at several strengths"):
        return {item.spec.name: dose_response(training, item, training.refusal_tokens) for item in found.steering}


def _assemble(
    run: _Run,
    found: Fitted,
    scored: dict[str, RequestScores],
    report: Report,
    created: str,
    evidence: Evidence,
    watched: Watched,
    forms: FormResults,
) -> Artifact:
    harmful = run.encoded["validation"].harmful
    scores = scored["validation"].scores[:, : len(found.probes)]
    canary = dict(zip([item.spec.name for item in found.probes], scored[_CANARY].scores[0].tolist(), strict=False))
    tensors = tensors_of(found.probes)
    for item in found.steering:
        tensors |= {f"steering.{item.spec.name}.{name}": tensor for name, tensor in item.tensors.items()}
    tensors |= {
        BENIGN_SCORES: torch.from_numpy(scores[~harmful].copy()),
        HARMFUL_SCORES: torch.from_numpy(scores[harmful].copy()),
        **watched.tensors,
        **{f"{BENIGN_SCORES}.{ending}": torch.from_numpy(each) for ending, each in forms.harmless.items()},
    }
    platt = _platt(run, scores)
    measured = [
        forms.noted(_measured(item.spec, scores[:, column], harmful, report, platt[column]))
        for column, item in enumerate(found.probes)
    ]
    manifest = Manifest(
        name=run.fingerprint.architecture,
        created=created,
        fingerprint=run.fingerprint,
        arithmetic=run.arithmetic,
        template=run.template,
        other_endings=tuple(forms.harmless),
        probes=tuple(measured),
        steering=tuple(item.spec for item in found.steering),
        watches=watched.watches,
        combinations={COMBINED: evidence.unseen.combination} if evidence.unseen else {},
        canary=canary,
        data=tuple(run.files[split].digest(split) for split in SPLITS),
        tools=run.tools,
    )
    return Artifact(manifest, tensors, {EVIDENCE: evidence.to_file()})


def _platt(run: _Run, validation_scores: npt.NDArray[np.float32]) -> list[Platt]:
    """Fit each probe's map to probabilities on its validation scores `[N, K]`."""
    harmful = run.encoded["validation"].harmful
    return [fit_platt(validation_scores[:, column], harmful) for column in range(validation_scores.shape[1])]


def _measured(
    spec: Probe,
    validation_scores: npt.NDArray[np.float32],
    harmful: npt.NDArray[np.bool_],
    report: Report,
    platt: Platt,
) -> Probe:
    validation = evaluate_scores(validation_scores, harmful, "validation")
    evaluation = (validation, report.probes[spec.name].evaluation)
    return spec.model_copy(update={"platt": platt, "evaluation": evaluation})


def _tools(settings: Settings) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("foreguard", "torch", "transformers", "scikit-learn", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    if settings.engine != IN_PROCESS:
        found["engine"] = " ".join([settings.engine, *settings.engine_args])
    return found
