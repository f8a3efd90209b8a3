"""The stages up to what is known of each probe: each takes the inputs and the results of stages before it."""

from dataclasses import dataclass, replace

from calibration.evaluation.controls import control_notes, random_probes, report_controls, shuffled_probes
from calibration.evaluation.evaluate import Report, evaluate
from calibration.evaluation.forms.results import FormResults, ask_in_forms
from calibration.evaluation.unseen.unseen_sources import UnseenSources, unseen_sources
from calibration.fitting.bank import bank_of, uncertified
from calibration.fitting.fitted import Fitted, FittedProbe, load_fitted, merge, save_fitted
from calibration.fitting.judged import judged_by
from calibration.fitting.logit_scale import fit_maps, fold, logit_maps, maps_from_logits
from calibration.fitting.training_set import TrainingSet
from calibration.methods.steering.admission import admit
from calibration.methods.watches.watches import CalibratedWatches, watch_answers
from calibration.pipeline.inputs import Inputs
from calibration.pipeline.kept import Codec, Kept, json_codec, key_of
from calibration.pipeline.scores import REQUEST_SCORES, Scored
from calibration.pipeline.settings import Settings
from calibration.prompts.near_duplicates import leakage_notes
from calibration.prompts.progress import stage
from calibration.prompts.template import EncodedPrompts, template_suffix
from calibration.recording.activations import record
from calibration.recording.places import every_place
from calibration.recording.request_scores import RequestScores, score_prompts
from calibration.registry import methods, refitted
from probes.errors import CalibrationError
from probes.manifest import Platt
from probes.scoring import ProbeBank

_FITTED = Codec(".safetensors", save_fitted, load_fitted)
_FORMS = Codec(".safetensors", FormResults.save, FormResults.load)
_REPORT = json_codec(Report)


def record_training(inputs: Inputs) -> Kept[TrainingSet]:
    """Read the hidden states of the training prompts, and set a quarter of these aside to choose by."""
    offset = len(template_suffix(inputs.chat.tokenizer))
    where = every_place(offset)
    key = key_of("activations", inputs.train, where)
    with stage("reading activations"):
        prompts, folder = inputs.train.value, inputs.work.path("activations", key)
        recording = record(inputs.chat, prompts, where, folder, source=inputs.source)
    return Kept(TrainingSet.split(inputs.chat, prompts, recording, offset, inputs.partner), key)


def fit_methods(inputs: Inputs, training: Kept[TrainingSet], settings: Settings) -> Kept[Fitted]:
    """Fit every method that is asked for. Raises `CalibrationError` where none of them finds a probe."""
    parts = []
    for name in settings.asked_methods:
        fit = methods()[name].fit
        parts.append(inputs.work.keep(f"fitted-{name}", _FITTED, fit, training, title=f"fitting {name}"))
    found = inputs.work.derive("fitted", lambda *each: merge(each), *parts)
    if not found.value.probes:
        raise CalibrationError(
            "no probe was found" + "".join(f"; {note}" for note in found.value.notes),
            field="--only",
            remedy="ask for another method too: --only classifiers always finds some",
        )
    return found


@dataclass(frozen=True, slots=True)
class AllScored:
    """The scores of the splits that took no part in fitting, and of the canary, by whoever certifies."""

    validation: Scored
    test: Scored
    canary: Scored

    def mapped(self, maps: list[Platt]) -> "AllScored":
        """Return the same with the maps applied to the probes' scores."""
        return AllScored(self.validation.mapped(maps), self.test.mapped(maps), self.canary.mapped(maps))


def score_splits(inputs: Inputs, training: Kept[TrainingSet], found: Kept[Fitted]) -> Kept[AllScored]:
    """Score the validation prompts, the canary and the test prompts by the probes and by control probes."""
    probes = [*found.value.probes, *_control_probes(inputs, training.value, found.value)]
    names = tuple(probe.spec.name for probe in probes)
    artifact, tokens = uncertified(inputs.identity, probes, inputs.template), training.value.refusal_tokens

    def score(split: str, prompts: EncodedPrompts, _found: Fitted) -> RequestScores:
        title = f"scoring {split} prompts"
        if inputs.source is not None:
            return inputs.source.score(prompts, artifact, tokens, title)
        bank = ProbeBank.from_artifact(artifact)
        return score_prompts(inputs.chat, bank, prompts, refusal_tokens=tokens, title=title)

    def kept(split: str, prompts: Kept[EncodedPrompts]) -> Kept[RequestScores]:
        title = f"scoring {split} prompts"
        return inputs.work.keep(f"scores-{split}", REQUEST_SCORES, score, split, prompts, found, title=title)

    validation, test = inputs.validation.value, inputs.test.value
    with_canary = inputs.work.derive("with-canary", lambda prompts: prompts + inputs.canary, inputs.validation)
    of_validation, of_test = kept("validation", with_canary), kept("test", inputs.test)
    scored = AllScored(
        Scored(validation, names, of_validation.value.part(slice(-1))),
        Scored(test, names, of_test.value),
        Scored(inputs.canary, names, of_validation.value.part(slice(-1, None))),
    )
    return Kept(scored, key_of("scored", of_validation, of_test))


def _control_probes(inputs: Inputs, training: TrainingSet, found: Fitted) -> list[FittedProbe]:
    logistic = next((probe.spec for probe in found.probes if probe.spec.name == "logistic"), None)
    shuffled = shuffled_probes(logistic, training) if logistic else []
    return [*random_probes(found.probes[0].spec, inputs.chat.hidden_size), *shuffled]


def admit_steering(
    inputs: Inputs, training: Kept[TrainingSet], found: Kept[Fitted], scored: Kept[AllScored], settings: Settings
) -> Kept[Fitted]:
    """Measure each steering vector, and leave out those that harmless validation prompts cannot bear."""

    def measure(own: TrainingSet, fitted: Fitted, scores: AllScored, budget: float, keep_costly: bool) -> Fitted:
        by_probe = scores.validation.by(fitted.names)
        return admit(own, fitted, scores.validation.prompts, by_probe, budget, keep_costly=keep_costly)

    options = (settings.kl_budget, settings.keep_costly_steering)
    return inputs.work.keep(
        "admitted", _FITTED, measure, training, found, scored, *options, title="measuring steering vectors"
    )


@dataclass(frozen=True, slots=True)
class Scaled:
    """Probes whose scores are log-odds of harm, with their scores on that scale."""

    found: Fitted
    scored: AllScored
    platt: tuple[Platt, ...]
    """Each probe's map from its score to a probability."""

    @property
    def names(self) -> tuple[str, ...]:
        """The probes' names."""
        return self.found.names


def to_log_odds(inputs: Inputs, found: Kept[Fitted], scored: Kept[AllScored]) -> Kept[Scaled]:
    """Fit each probe's map to probabilities on the validation prompts, and fold it into the probe."""

    def scale(fitted: Fitted, scores: AllScored) -> Scaled:
        validation = scores.validation
        judged = [judged_by(probe.spec, validation.prompts) for probe in fitted.probes]
        platt = fit_maps(validation.by(fitted.names), validation.prompts.harmful, judged)
        maps = logit_maps(platt)
        return Scaled(
            replace(fitted, probes=fold(fitted.probes, maps)), scores.mapped(maps), tuple(maps_from_logits(platt))
        )

    return inputs.work.derive("log-odds", scale, found, scored)


def watch(
    inputs: Inputs, training: Kept[TrainingSet], scaled: Kept[Scaled], settings: Settings
) -> Kept[CalibratedWatches]:
    """Let the model answer, where answers are to be watched."""
    key = key_of("answers", training, scaled, settings.watch_answers)
    if settings.watch_answers is None:
        return Kept(CalibratedWatches(), key)
    splits = {"validation": inputs.validation.value, "test": inputs.test.value}
    with stage("calibrating watches of answers"):
        folder = inputs.work.path("answers", key)
        watched = watch_answers(training.value, scaled.value.found, splits, settings.watch_answers, folder)
    return Kept(watched, key)


def report_on_test(
    inputs: Inputs, scaled: Kept[Scaled], watched: Kept[CalibratedWatches], settings: Settings
) -> Kept[Report]:
    """Report what probes and controls are worth on the test prompts."""

    def report(own: Scaled, more: CalibratedWatches, embed: bool) -> Report:
        test = own.scored.test
        controls = report_controls(test.prompts, test.requests, test.names, train=inputs.train.value, embed=embed)
        return evaluate(
            test.prompts,
            test.by(own.names),
            [probe.spec for probe in own.found.probes],
            own.scored.validation.harmless(own.names),
            split="test",
            controls=controls,
            platt=own.platt,
            notes=(
                *own.found.notes,
                *more.notes,
                *control_notes(controls, embed=embed),
                *leakage_notes(list(inputs.files.values())),
            ),
        )

    return inputs.work.keep("report", _REPORT, report, scaled, watched, settings.full, title="evaluating")


def ask_forms(inputs: Inputs, scaled: Kept[Scaled], settings: Settings) -> Kept[FormResults]:
    """Ask validation and test requests in other forms."""

    def ask(own: Scaled, most: int) -> FormResults:
        bank = bank_of(inputs.identity, own.found.probes, inputs.template)
        harmless = own.scored.validation.harmless(own.names)
        return ask_in_forms(inputs.chat, bank, inputs.validation.value, inputs.test.value, harmless, most)

    return inputs.work.keep("forms", _FORMS, ask, scaled, settings.forms, title="asking in other forms")


def leave_out_sources(inputs: Inputs, training: Kept[TrainingSet], settings: Settings) -> UnseenSources | None:
    """Fit without each source in turn, where that was asked for; each source by each method is a file."""
    if not settings.leave_one_source_out:
        return None
    own, asked = training.value, refitted(settings.asked_methods)
    with stage("leaving out one source at a time"):
        folder = inputs.work.path("unseen", key_of("unseen", training, settings.full)) / "sources"
        return unseen_sources(own, folder, asked, own.refusal_tokens, embed=settings.full)
