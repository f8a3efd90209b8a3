"""The report shows what was measured, whole and alone in one file."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from calibration.fitting.study import Chart, Series, StudyResult, Table
from calibration.report.evidence import FILE, Evidence, SplitScores, split_scores
from calibration.report.figures import reliability_points, roc_points
from calibration.report.page import write_report
from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.manifest import Platt

FIGURES = ["separation", "scores", "roc", "reliability", "dose_refusal", "steering_trade"]


def drawn(artifact, *, studies=True):
    """How many pictures an artifact's page has: four that every page has, one a steering vector, one a study's
    chart.
    """
    evidence = Evidence.of(artifact)
    charts = sum(len(study.charts) for study in evidence.studies)
    return 4 + len(artifact.manifest.steering) + (charts if studies else 0)


@pytest.fixture(scope="module")
def artifact(calibrated):
    """The calibrated artifact."""
    return Artifact.load(calibrated[1])


@pytest.fixture(scope="module")
def page(artifact, tmp_path_factory):
    """The report's page."""
    return write_report(artifact, tmp_path_factory.mktemp("report"))


def test_the_page_stands_alone(page, artifact):
    """It loads nothing: no script, no style sheet, no picture from anywhere but itself."""
    text = page.read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)\b", text)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!\#|data:)""", text)
    assert not re.findall(r"url\((?!\#)", text)
    assert text.count("<svg") == drawn(artifact)


def test_every_figure_is_a_png_too(page):
    """One file each, of a size that can be looked at."""
    for name in FIGURES:
        content = (page.parent / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5_000


def test_documentation_names_every_key_of_the_evidence():
    """docs/artifact.md has each key of evidence.json, at every depth."""
    document = (Path(__file__).parents[3] / "docs" / "artifact.md").read_text()
    schema = Evidence.model_json_schema()
    keys = set(schema["properties"]).union(*(part.get("properties", {}) for part in schema["$defs"].values()))
    assert {key for key in keys if f"`{key}`" not in document} == set()


def test_every_probe_control_group_and_file_is_on_the_page(page, artifact):
    """With the numbers that the evaluation gives."""
    text, report = unescape(page.read_text()), Evidence.of(artifact).report
    for name, probe in report.probes.items():
        assert f"<td>{name}</td>" in text
        assert f"{probe.evaluation.auroc:.3f} ({probe.evaluation.auroc_low:.3f}" in text
    for name in (*report.controls, *report.probes["stack"].categories):
        assert f"<td>{name}</td>" in text
    for item in artifact.manifest.data:
        assert item.sha256 in text
    for note in report.notes:
        assert note in text


def test_what_could_not_be_asked_is_on_the_page_with_the_reason(artifact, tmp_path):
    """A study that needs what the model does not have has a row instead; where all were asked there is no such
    section.
    """
    evidence = Evidence.of(artifact)
    assert "--partner" in evidence.not_asked["alignment_tax"]
    text = unescape(write_report(artifact, tmp_path / "some").read_text())
    assert "Not asked</h2>" in text
    for name, reason in evidence.not_asked.items():
        assert f"<td>{name}</td>" in text
        assert reason in text
    content = evidence.model_copy(update={"not_asked": {}}).to_file()
    assert "Not asked" not in write_report(replace(artifact, attachments={FILE: content}), tmp_path / "all").read_text()


def test_the_first_sentence_compares_with_the_best_control(page, artifact):
    """On the planted model words explain the labels wholly, and the page says that no probe is better."""
    sentence = re.search(r'class="lead">(.*?)</p>', page.read_text()).group(1)
    assert re.search(r"(cannot be told from|loses to) the best control, (tfidf|sentence_embedding) ", sentence)


def test_reliability_is_on_the_page_in_numbers(page, artifact):
    """Brier score and calibration error of each probe, as calibrated and at the test split's share of harmful
    prompts.
    """
    text, report = page.read_text(), Evidence.of(artifact).report
    for probe in report.probes.values():
        as_calibrated, here = probe.reliability
        assert as_calibrated.prevalence == pytest.approx(84 / 420)
        assert here.prevalence == report.num_harmful / (report.num_harmful + report.num_harmless)
        for each in probe.reliability:
            assert f"{each.brier.value:.4f} ({each.brier.low:.4f}–{each.brier.high:.4f})" in text
            assert f"{each.ece.value:.3f} ({each.ece.low:.3f}–{each.ece.high:.3f})" in text


def test_what_a_prompt_file_says_is_text_not_markup(artifact, tmp_path):
    """A category that is a script is shown, not run."""
    evidence = Evidence.of(artifact)
    stack = evidence.report.probes["stack"]
    group = next(iter(stack.categories.values()))
    bad = stack.model_copy(update={"categories": {"<script>alert(1)</script>": group}})
    report = evidence.report.model_copy(update={"probes": evidence.report.probes | {"stack": bad}})
    content = evidence.model_copy(update={"report": report}).to_file()
    text = write_report(replace(artifact, attachments={FILE: content}), tmp_path).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_unseen_sources_are_a_table_with_their_mean(artifact, tmp_path):
    """Recall and flags by source and probe; a source without a class has a dash there, and no part in the mean."""
    rate = {"low": 0.0, "high": 1.0, "count": 50}
    rows = {
        "plain": {"lda": {"auroc": 0.9, "recall": rate | {"value": 0.8}, "flagged": rate | {"value": 0.04}}},
        "wrapped": {"lda": {"auroc": 0.7, "recall": rate | {"value": 0.2}, "flagged": None}},
    }
    evidence = Evidence.model_validate(
        Evidence.of(artifact).model_dump()
        | {"unseen": {"target_fpr": 0.01, "sources": rows, "combination": {"lda": 1.0}}}
    )
    changed = replace(artifact, attachments={FILE: evidence.to_file()})
    text = re.sub(r"\s+", " ", write_report(changed, tmp_path).read_text())
    assert "<td>wrapped</td><td>50</td><td>0</td> <td>20 % / –</td>" in text
    assert "<th>50 % / 4.0 %</th>" in text


def test_an_artifact_without_evidence_says_what_to_do(artifact, tmp_path):
    """Older artifacts, and those made by other tools, are told apart from broken ones."""
    with pytest.raises(ArtifactError, match="no evidence") as caught:
        write_report(replace(artifact, attachments={}), tmp_path)
    assert "calibrate" in caught.value.remedy
    with pytest.raises(ArtifactError, match="another version"):
        write_report(replace(artifact, attachments={FILE: b'{"odd": 1}'}), tmp_path)


def test_the_planted_separation_is_on_the_map(artifact):
    """Harm is visible everywhere after the first block's attention, and the map names the template's tokens."""
    found = Evidence.of(artifact).separation
    assert found.positions[0] == "-1: '<|assistant|>'"
    assert found.positions[-2:] == ("-3: instruction's last", "mean over the content")
    assert np.array(found.auroc).shape == (4, 3)
    assert min(found.auroc[0]) > 0.95


def test_dose_and_response_of_the_planted_vector(artifact):
    """At strength 0 nothing happens; refusal and side effect grow with every step."""
    curve = Evidence.of(artifact).doses["refusal"]
    assert curve[0].strength == 0
    assert curve[0].kl_harmless == 0
    assert curve[0].refused_harmless == 0
    refusal = [each.refusal_harmless for each in curve]
    assert refusal == sorted(refusal)
    assert refusal[-1] > 0 > refusal[0]
    assert curve[-1].kl_harmless > curve[1].kl_harmless > 0
    assert curve[-1].refused_harmless == 1


def test_roc_points_are_those_of_an_independent_implementation():
    """At every false-positive rate the recall is the highest that scikit-learn's curve has there."""
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(1, 1, 300), rng.normal(0, 1, 500)
    rates, recalls = roc_points(SplitScores(harmful=tuple(harmful), harmless=tuple(harmless)))
    labels = np.repeat([1, 0], [300, 500])
    theirs_fpr, theirs_tpr, _ = roc_curve(labels, np.concatenate([harmful, harmless]), drop_intermediate=False)
    highest = [theirs_tpr[np.isclose(theirs_fpr, rate)].max() for rate in rates]
    np.testing.assert_allclose(recalls, highest)


def test_a_harmful_score_that_ties_with_the_cut_is_not_recalled():
    """A score is flagged above its threshold, not at it."""
    rates, recalls = roc_points(SplitScores(harmful=(1.0, 2.0), harmless=(0.0, 1.0)))
    assert rates.tolist() == [0.0, 0.5, 1.0]
    assert recalls.tolist() == [0.5, 1.0, 1.0]


def test_reliability_of_true_probabilities():
    """Where the map is true, 95 % intervals hold the prediction about as often as they say."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 20_000)
    harmful = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    split = SplitScores(harmful=tuple(logits[harmful]), harmless=tuple(logits[~harmful]))
    predicted, observed, low, high = reliability_points(split, Platt(slope=1.0, intercept=0.0))
    assert len(predicted) == 8
    assert ((low <= predicted) & (predicted <= high)).sum() >= 6
    assert np.abs(predicted - observed).max() < 0.03


def test_split_scores_keep_every_prompt_on_its_side():
    """Counts and order by class are those of the labels."""
    scores = np.arange(12, dtype=np.float32).reshape(6, 2)
    harmful = np.array([True, False, False, True, False, True])
    found = split_scores(["a", "b"], scores, harmful)
    assert found["b"].harmful == (1.0, 7.0, 11.0)
    assert found["a"].harmless == (2.0, 4.0, 8.0)


def test_a_study_stands_on_the_page_with_its_finding_charts_and_tables(artifact, tmp_path):
    """Whatever a method learned is shown, with intervals, and as a PNG."""
    line = Series(name="real", x=(1, 10, 100), y=(0.1, 0.5, 0.9), low=(0.0, 0.4, 0.8), high=(0.2, 0.6, 1.0))
    chart = Chart(name="curve", caption="how far", x_label="k", y_label="C", series=(line,), log_x=True)
    table = Table(name="cells", columns=("neuron", "score"), rows=(("3.17", 0.25),))
    study = StudyResult(
        name="probe_study", title="A study", finding="It held <once>.", charts=(chart,), tables=(table,)
    )
    evidence = Evidence.of(artifact).model_copy(update={"studies": (study,)})
    page = write_report(replace(artifact, attachments={FILE: evidence.to_file()}), tmp_path)
    text = page.read_text()
    assert "It held &lt;once&gt;." in text
    assert "<td>3.17</td><td>0.25</td>" in text
    assert text.count("<svg") == drawn(artifact, studies=False) + 1
    assert (tmp_path / "probe_study_curve.png").read_bytes().startswith(b"\x89PNG")
