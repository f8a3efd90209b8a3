"""From a model folder and three files to an artifact, interrupted or not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from brief import BRIEF
from tiny import make_prompts, write_prompts

from calibration.evaluation.evaluation_run import evaluate_artifact
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.kept import WORK
from calibration.pipeline.settings import Settings
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.splits import SPLITS, read_splits
from calibration.recording.request_scores import score_batches
from calibration.registry import methods, plain, studies
from calibration.report.evidence import Evidence
from guard.threshold import certify
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.canary import canary_prompt, tolerances
from probes.errors import ArtifactMismatch, CalibrationError, PromptError
from probes.fingerprint import fingerprint
from probes.scoring import ProbeBank
from probes.steering import SteeringBank

NAMES = [
    "refusal",
    "harmfulness",
    "logistic",
    "lda",
    "stack",
    "pooled",
    "joint",
    "joint_pooled",
    "rolling",
    "svm",
    "mlp",
    "siren",
    "tokens",
    "attention",
    "multimax",
    "content",
    "wording",
    "token_perceptron",
    "refusal_readout",
    "neurons",
    "novelty",
    "letters",
]
CONTROLS = ("prompt_length", "random", "shuffled", "sentence_embedding", "tfidf", "first_token_refusal")
SLOW = {"svm", "mlp", "siren", "token_perceptron", "refusal_readout", "neurons", "novelty"}


def test_an_artifact_is_written_whole(calibrated, planted, splits):
    """It loads, belongs to the model, names its data, and holds every probe with Platt scaling and two evaluations."""
    done, out = calibrated
    artifact = Artifact.load(out)
    assert artifact.manifest == done.manifest
    artifact.manifest.fingerprint.require(fingerprint(planted.folder))
    assert [probe.name for probe in artifact.manifest.probes] == NAMES
    steering = {vector.name: vector.evidence for vector in artifact.manifest.steering}
    assert next(iter(steering)) == "refusal"
    for name, evidence in steering.items():
        assert evidence["kl_behind_rule" if name == "refusal" else "kl_benign"] <= 0.1
    SteeringBank.from_artifact(artifact)
    assert [item.split for item in artifact.manifest.data] == list(SPLITS)
    assert artifact.tensors[BENIGN_SCORES].shape == (336, len(NAMES))
    assert artifact.tensors[HARMFUL_SCORES].shape == (84, len(NAMES))
    for probe in artifact.manifest.probes:
        assert probe.platt is not None
        assert probe.platt.slope > 0
        assert [each.split for each in probe.evaluation] == ["validation", "test"]
        assert probe.evaluation[1].auroc > 0.99 or probe.role == "evades"
    assert not (out.parent / WORK).exists()


def test_the_canary_s_scores_are_the_served_arithmetic_s(calibrated, planted_chat):
    """The artifact keeps what its own probes, as they are stored, read of the canary prompt."""
    _, out = calibrated
    artifact = Artifact.load(out)
    bank = ProbeBank.from_artifact(artifact)
    prompt = canary_prompt(planted_chat.model.config.vocab_size, artifact.manifest.template)
    [(_, found)] = score_batches(planted_chat, bank, [prompt], [[0]])
    assert artifact.manifest.canary == pytest.approx(dict(zip(bank.names, found.scores[0], strict=True)), abs=1e-3)
    assert set(tolerances(artifact)) == set(NAMES)


def test_a_certified_threshold_keeps_its_promise_on_test(calibrated):
    """The realised false-positive rate is reported, and is compatible with the target."""
    done, _ = calibrated
    for name in NAMES:
        frozen = done.report.probes[name].frozen[0]
        assert frozen.target_fpr == 0.01
        assert frozen.fpr.low <= 0.01


def test_the_report_says_what_the_sample_cannot(calibrated):
    """320 harmless prompts give no recall at 0.1 %, and the report says so instead of a number."""
    done, _ = calibrated
    assert set(done.report.probes["stack"].evaluation.tpr_at_fpr) == {"0.01"}
    assert any("0.1%" in note and "2995" in note for note in done.report.notes)


def test_controls_are_reported_beside_the_probes(calibrated):
    """Words explain the planted labels as well as any probe; length, chance directions and shuffled labels do not."""
    controls = calibrated[0].report.controls
    assert set(controls) == set(CONTROLS)
    assert controls["tfidf"].auroc > 0.95
    assert controls["first_token_refusal"].auroc > 0.95
    assert abs(controls["prompt_length"].auroc - 0.5) < 0.15


def test_categories_and_sources_are_reported(calibrated):
    """Each group has its own counts and rates; together they are all prompts."""
    report = calibrated[0].report
    groups = report.probes["stack"].categories
    assert sum(group.num_harmful for group in groups.values()) == report.num_harmful
    assert set(report.probes["stack"].sources) == {"made here"}
    assert json.loads(report.model_dump_json())["probes"]["stack"]["sources"]["made here"]["auroc"] > 0.99


@pytest.mark.parametrize("passes", [3, 12, 25, 38])
def test_an_interrupted_calibration_goes_on_and_ends_the_same(brief, planted, splits, tmp_path, monkeypatch, passes):
    """Stopped in the middle of reading, judging or scoring, the same call ends with the same tensors and numbers."""
    from calibration.model.chat_model import ChatModel

    original, count = ChatModel.last_logits, 0

    def stopping(self, batch):
        nonlocal count
        count += 1
        if count > passes:
            raise KeyboardInterrupt
        return original(self, batch)

    files = [splits[split] for split in SPLITS]
    monkeypatch.setattr(ChatModel, "last_logits", stopping)
    try:
        calibrate(planted.folder, read_splits(*files), tmp_path / "artifact", BRIEF)
    except KeyboardInterrupt:
        assert any((tmp_path / WORK).iterdir())
        assert not (tmp_path / "artifact").exists()
    else:
        pytest.fail("the run was not interrupted")
    monkeypatch.setattr(ChatModel, "last_logits", original)
    done = calibrate(planted.folder, read_splits(*files), tmp_path / "artifact", BRIEF)
    whole, resumed = Artifact.load(brief[1]), Artifact.load(tmp_path / "artifact")
    assert all(torch.equal(whole.tensors[name], tensor) for name, tensor in resumed.tensors.items())
    same = {"created": "", "digest": ""}
    assert done.manifest.model_copy(update=same) == brief[0].manifest.model_copy(update=same)
    assert done.report == brief[0].report


def test_leaving_sources_out_afterwards_reads_no_activation_again(planted, splits, tmp_path):
    """The same calibration with one question more: its files stay, the table is added, all else is as before."""
    lines = [line | {"source": ("one", "two")[row % 2]} for row, line in enumerate(make_prompts(240, 5))]
    train = write_prompts(tmp_path / "train.jsonl", lines)
    files, out = (train, splits["validation"], splits["test"]), tmp_path / "artifact"
    without = calibrate(planted.folder, read_splits(*files), out, replace(BRIEF, keep_work=True))
    assert Evidence.of(Artifact.load(out)).unseen is None
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / WORK).rglob("activations-*/*")}
    asked = calibrate(
        planted.folder, read_splits(*files), out, replace(BRIEF, keep_work=True, leave_one_source_out=True)
    )
    unseen = Evidence.of(Artifact.load(out)).unseen
    assert set(unseen.sources) == {"one", "two"}
    assert asked.manifest.combinations == {"combined": unseen.combination}
    assert set(unseen.combination) <= {probe.name for probe in asked.manifest.probes}
    assert shards == {path: path.stat().st_mtime_ns for path in (tmp_path / WORK).rglob("activations-*/*")}
    assert asked.report == without.report


def test_one_source_is_refused_before_the_model_reads_a_prompt(planted, splits, tmp_path, monkeypatch):
    """Who asks to leave sources out, and names one, learns it at once and not after the whole calibration."""
    monkeypatch.setattr(
        "calibration.model.chat_model.ChatModel.last_logits", lambda *_: pytest.fail("the model was run")
    )
    with pytest.raises(CalibrationError, match="1 family"):
        calibrate(planted.folder, read_splits(**splits), tmp_path / "artifact", Settings(leave_one_source_out=True))


def test_evaluating_the_test_file_again_gives_the_report_again(calibrated, planted, splits):
    """`evaluate` on calibration's test file agrees with calibration's report, probe for probe."""
    done, out = calibrated
    again = evaluate_artifact(
        planted.folder, Artifact.load(out), load_prompts(splits["test"]), train=load_prompts(splits["train"])
    )
    for name in NAMES:
        now, then = again.report.probes[name], done.report.probes[name]
        assert now.evaluation.auroc == pytest.approx(then.evaluation.auroc, abs=1e-6)
        assert now.frozen[0].tpr.value == pytest.approx(then.frozen[0].tpr.value)
    assert again.report.controls["tfidf"].auroc == done.report.controls["tfidf"].auroc


def test_a_control_that_cannot_be_measured_is_named(brief, planted, splits, monkeypatch):
    """Where the encoder's package is missing, a note stands in the control's place; without --train nothing was
    asked.
    """
    monkeypatch.setattr("calibration.evaluation.sentence_embedding.PACKAGE", "no_such_package")
    artifact, test, train = Artifact.load(brief[1]), load_prompts(splits["test"]), load_prompts(splits["train"])
    report = evaluate_artifact(planted.folder, artifact, test, train=train).report
    assert "sentence_embedding" not in report.controls
    assert any(note.startswith("no control sentence_embedding: the Python package") for note in report.notes)
    plain = evaluate_artifact(planted.folder, artifact, test).report
    assert not any("no control" in note for note in plain.notes)


def test_another_model_is_refused(calibrated, planted, splits, tmp_path):
    """An artifact meets a model whose chat template was changed: the difference is named."""
    other = tmp_path / "other"
    shutil.copytree(planted.folder, other)
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ArtifactMismatch, match="chat_template"):
        evaluate_artifact(other, Artifact.load(calibrated[1]), load_prompts(splits["test"]))


def test_a_model_that_changes_during_the_run_is_refused(planted, splits, tmp_path, monkeypatch):
    """Weights written over in the middle would give an artifact of two models: nothing is written or kept."""
    folder = tmp_path / "model"
    shutil.copytree(planted.folder, folder)
    method = methods()["harmfulness_direction"]

    def overwrite(training):
        (folder / "config.json").write_text((folder / "config.json").read_text().replace('"rms_norm_eps"', '"x"'))
        return method.fit(training)

    changed = {**methods(), method.name: replace(method, fit=overwrite)}
    for user in ("settings", "stages"):
        monkeypatch.setattr(f"calibration.pipeline.{user}.methods", lambda: changed)
    with pytest.raises(CalibrationError, match="changed while it was being read"):
        calibrate(folder, read_splits(**splits), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    assert not (tmp_path / WORK).exists()


def test_a_limit_thins_training_only(planted, splits, tmp_path):
    """Certification keeps every prompt; training keeps the limit per class; the work folder can be kept."""
    settings = Settings(limit=40, keep_work=True)
    done = calibrate(planted.folder, read_splits(**splits), tmp_path / "artifact", settings)
    assert Artifact.load(tmp_path / "artifact").tensors[BENIGN_SCORES].shape[0] == 336
    (work,) = (tmp_path / WORK).iterdir()
    (begun,) = work.glob("settings-*.json")
    assert json.loads(begun.read_text())["prompts"] == {"train": 80, "validation": 420, "test": 400}
    assert done.report.probes["stack"].evaluation.auroc > 0.99


def test_bad_data_stops_before_the_model_is_loaded(splits, tmp_path):
    """One-class training data, and a request shared by two files, are refused though the model does not exist."""
    one_class = write_prompts(tmp_path / "one.jsonl", make_prompts(40, 9, harmful_share=0))
    with pytest.raises(PromptError, match="0 harmful prompts"):
        calibrate(tmp_path / "none", read_splits(one_class, splits["validation"], splits["test"]), tmp_path / "a")
    with pytest.raises(PromptError, match="the same request stands in"):
        calibrate(
            tmp_path / "none", read_splits(splits["train"], splits["validation"], splits["validation"]), tmp_path / "a"
        )


def test_thresholds_from_stored_scores_hold_in_simulation(calibrated):
    """Resampling the stored benign scores as if they were traffic, 1 % thresholds break their promise rarely."""
    scores = Artifact.load(calibrated[1]).tensors[BENIGN_SCORES][:, 0].numpy()
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(500):
        cut = certify(rng.choice(scores, 600), 0.01).value
        broken += (scores > cut).mean() > 0.01
    assert broken / 500 <= 0.07


def test_a_plain_calibration_fits_less_and_measures_no_study(planted, splits, tmp_path, monkeypatch):
    """Its probes are those of the default methods, with certified thresholds; no encoder reads the prompts beside
    it.
    """
    monkeypatch.setattr(
        "calibration.evaluation.controls.SentenceEncoder.load", lambda: pytest.fail("an encoder was loaded")
    )
    done = calibrate(planted.folder, read_splits(**splits), tmp_path / "artifact")
    assert [probe.name for probe in done.manifest.probes] == [name for name in NAMES if name not in SLOW]
    assert {vector.name for vector in done.manifest.steering} == {"refusal"}
    evidence = Evidence.of(Artifact.load(tmp_path / "artifact"))
    assert {study.name for study in evidence.studies} == {"refusal_choice", "steering", "jailbreak_signature", "forms"}
    assert evidence.not_asked == {}
    assert set(done.report.controls) == set(CONTROLS) - {"sentence_embedding"}


def test_what_runs_is_said_in_one_way():
    """The default, the default and more, all, or nothing but what is named; two of them at once contradict each
    other.
    """
    names = (*methods(), *studies())
    assert tuple(filter(Settings().runs, names)) == plain()
    assert set(filter(Settings(also=("novelty", "experts")).runs, names)) == {*plain(), "novelty", "experts"}
    assert tuple(filter(Settings(full=True).runs, names)) == names
    assert tuple(filter(Settings(only=("novelty",)).runs, names)) == ("novelty",)
    for other in ({"full": True}, {"also": ("novelty",)}):
        with pytest.raises(CalibrationError, match="asks for more than the names given"):
            Settings(only=("classifiers",), **other).require_one_choice()
    with pytest.raises(CalibrationError, match="no method or study 'classifier'") as caught:
        Settings(also=("classifier",)).require_one_choice()
    assert caught.value.field == "--also"
    with pytest.raises(CalibrationError, match="nothing that is to run compares") as caught:
        Settings(partner=Path("base")).require_one_choice()
    assert "--full" in caught.value.remedy
    Settings(partner=Path("base"), also=("alignment_tax",)).require_one_choice()


def test_a_method_that_does_not_exist_is_refused_with_the_names_of_those_that_do(splits, tmp_path):
    """Before any work: a wrong name is told with the right ones, and studies alone would fit nothing."""
    files = [splits[split] for split in SPLITS]
    with pytest.raises(CalibrationError, match="no method or study 'classifier'") as caught:
        calibrate(tmp_path / "none", read_splits(*files), tmp_path / "a", Settings(only=("classifier",)))
    assert "classifiers" in caught.value.remedy
    with pytest.raises(CalibrationError, match="nothing would be fitted"):
        calibrate(tmp_path / "none", read_splits(*files), tmp_path / "a", Settings(only=("safety_heads",)))


def test_sources_are_left_out_of_methods_that_were_asked_for(splits, tmp_path):
    """Where none of them can be fitted without a source, that is said before any work."""
    files, settings = (
        [splits[split] for split in SPLITS],
        Settings(only=("refusal_direction",), leave_one_source_out=True),
    )
    with pytest.raises(CalibrationError, match="sources can be left out of none") as caught:
        calibrate(tmp_path / "none", read_splits(*files), tmp_path / "a", settings)
    assert "classifiers" in caught.value.remedy


def test_methods_that_find_no_probe_end_in_an_error_that_names_another(planted, splits, tmp_path):
    """Steering alone gives vectors and no probe: an artifact without one would guard nothing."""
    files = [splits[split] for split in SPLITS]
    with pytest.raises(CalibrationError, match="no probe was found") as caught:
        calibrate(planted.folder, read_splits(*files), tmp_path / "a", Settings(only=("steering",)))
    assert "--only classifiers" in caught.value.remedy
    assert not (tmp_path / "a").exists()


def test_steering_without_the_refusal_direction_is_measured_like_any_other(planted, splits, tmp_path):
    """Whichever methods were asked for: a vector in the artifact has its price, and one left out a note with the
    number.
    """
    settings = Settings(only=("classifiers", "steering"), limit=60)
    done = calibrate(planted.folder, read_splits(**splits), tmp_path / "a", settings)
    vectors = done.manifest.steering
    assert all(vector.evidence["kl_benign"] <= 0.1 for vector in vectors)
    left_out = [note for note in done.report.notes if note.startswith("steering vector")]
    assert len(vectors) + len(left_out) == 11
    curves = Evidence.of(Artifact.load(tmp_path / "a")).doses
    assert set(curves) == {vector.name for vector in vectors}
    assert all(dose.refusal_harmful > -18 for curve in curves.values() for dose in curve)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_to_wrap_that_is_none_is_refused(splits, tmp_path, share):
    """Before any work, also where it is no number."""
    with pytest.raises(CalibrationError, match="no share of the training prompts"):
        calibrate(tmp_path / "none", read_splits(**splits), tmp_path / "a", Settings(wrap=share))


@pytest.mark.parametrize("method", ["classifiers", pytest.param("harmfulness_direction", marks=pytest.mark.long)])
def test_every_study_bears_what_was_not_fitted(planted, splits, tmp_path, method):
    """Each is asked after one method alone: it says something, or why it cannot be asked, and breaks nothing."""
    done = calibrate(
        planted.folder,
        read_splits(**splits),
        tmp_path / "a",
        replace(BRIEF, only=(method, *studies()), limit=60),
    )
    assert done.manifest.probes
    evidence = Evidence.of(Artifact.load(tmp_path / "a"))
    names = [study.name for study in evidence.studies]
    assert len(set(names)) == len(names)
    assert {*names, *evidence.not_asked} >= {*studies(), "jailbreak_signature", "steering"}
    assert not set(names) & evidence.not_asked.keys()
    assert all(evidence.not_asked.values())
    assert "--partner" in evidence.not_asked["neuron_patching"]
    assert done.not_asked == evidence.not_asked
