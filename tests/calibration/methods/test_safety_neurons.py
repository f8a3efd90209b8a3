"""The method: rankings, a probe that scores as it was fitted, and plain words where something is missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_pair import PLANTED, WIDTH, make_pair
from recorded import training_set
from tiny import HIDDEN, make_prompts
from transformers import MixtralConfig, MixtralForCausalLM

from calibration.fitting.fitted import load_fitted, save_fitted
from calibration.fitting.metrics import auroc, mean_interval
from calibration.methods.neurons.neuron_probe import fit_neuron_probe
from calibration.methods.neurons.ranking import Ranking
from calibration.methods.neurons.safety_neurons import fit_safety_neurons
from calibration.model.chat_model import ChatModel
from calibration.model.neurons import Neurons
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.settings import Settings
from calibration.prompts.splits import read_splits
from calibration.recording.request_scores import score_prompts
from calibration.report.evidence import Evidence
from probes.artifact import Artifact
from probes.scoring import ProbeBank


@pytest.fixture
def pair(tokenizer, tmp_path):
    """A training set of the planted pair."""
    aligned, partner = make_pair(tokenizer)
    return replace(training_set(aligned, tmp_path, make_prompts(240, 0)), partner=partner)


def test_the_probe_scores_as_it_was_fitted(pair):
    """Laid out over all neurons of its blocks, and scored as it is served, it does on selection prompts what it
    says.
    """
    found = fit_safety_neurons(pair)
    (probe,) = found.probes
    assert probe.spec.site == "mlp_neurons"
    assert {name: tensor.shape for name, tensor in probe.tensors().items()} == probe.spec.shapes(HIDDEN)
    assert probe.spec.width == WIDTH
    assert max(probe.spec.layers) < pair.chat.num_layers - 1
    assert int((probe.weight != 0).sum()) <= probe.spec.evidence["num_neurons"]
    harmful = pair.harmful[pair.select]
    scores = score_prompts(
        pair.chat, ProbeBank.of([probe.spec], probe.tensors()), pair.prompts.subset(pair.select)
    ).scores[:, 0]
    assert auroc(scores[harmful], scores[~harmful]) == pytest.approx(probe.spec.evidence["selection_auroc"])
    assert probe.spec.evidence["selection_auroc"] > 0.95
    assert found.notes == ()


def test_a_probe_on_planted_neurons_reads_those_alone(pair):
    """Neurons that tell harm by themselves are enough, and where they are ranked first the weight lies on them."""
    neurons = Neurons.of(pair.chat)
    scores = np.zeros(neurons.count)
    scores[PLANTED] = 1
    probe, study = fit_neuron_probe(pair, neurons, [Ranking("planted", "plan", scores, neurons)])
    weights = torch.zeros(neurons.count)
    for row, layer in enumerate(probe.spec.layers):
        weights[neurons.starts[layer] : neurons.starts[layer + 1]] = probe.weight[row, 0]
    assert (weights[PLANTED] != 0).all()
    assert probe.spec.evidence["num_neurons"] == 15
    assert probe.spec.evidence["selection_auroc"] == 1
    random = study.charts[0].series[-1]
    assert all(low <= value <= high for low, value, high in zip(random.low, random.y, random.high, strict=True))


def test_without_a_partner_there_are_other_rankers_and_a_note(pair):
    """The note names the option; the curves are those of `single` and `auroc`."""
    found = fit_safety_neurons(replace(pair, partner=None))
    assert found.probes
    assert ["--partner" in note for note in found.notes] == [True]
    assert [chart.name for chart in found.studies[0].charts] == ["single", "auroc"]


def test_a_model_that_does_not_refuse_is_ranked_by_labels(pair):
    """The partner alone never refuses: a note says what the rankings rest on."""
    found = fit_safety_neurons(replace(pair, chat=pair.partner, partner=None))
    assert found.probes
    assert any("labels alone" in note for note in found.notes)


def test_a_mixture_of_experts_gets_a_note(tokenizer, tmp_path):
    """No neurons that every token passes: the calibration goes on without."""
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    chat = ChatModel.wrap(MixtralForCausalLM(config), tokenizer)
    found = fit_safety_neurons(training_set(chat, tmp_path, make_prompts(60, 0)))
    assert not found.probes
    assert "no single down-projection" in found.notes[0]
    assert all("no single down-projection" in found.not_asked[name] for name in ("safety_neurons", "neuron_count"))


def test_blocks_of_unequal_width_get_a_note(pair, monkeypatch):
    """A probe's tensor has one width."""
    unequal = Neurons(pair.chat, (), (WIDTH, WIDTH, WIDTH // 2))
    monkeypatch.setattr(Neurons, "of", classmethod(lambda _cls, _chat: unequal))
    found = fit_safety_neurons(pair)
    assert not found.probes
    assert "differ in their numbers of neurons" in found.notes[0]


def test_what_is_found_survives_its_file(pair, tmp_path):
    """Probe, studies and notes are read back as they were."""
    found = fit_safety_neurons(pair)
    save_fitted(found, tmp_path / "f.safetensors")
    back = load_fitted(tmp_path / "f.safetensors")
    assert torch.equal(back.probes[0].weight, found.probes[0].weight)
    assert back.studies == found.studies
    assert {study.name for study in back.studies} == {"safety_neurons", "neuron_count"}


def test_a_mean_has_students_interval():
    """Five draws: the textbook half-width 2.776 s / sqrt(5)."""
    values = [0.1, 0.4, 0.2, 0.5, 0.3]
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(0.3)
    assert high - mean == pytest.approx(2.776 * np.std(values, ddof=1) / 5**0.5, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_no_interval_of_shares_leaves_their_range():
    """Recalls near one, or near nothing: the interval ends there."""
    assert mean_interval([1.0, 1.0, 0.7], of_shares=True)[2] == 1.0
    assert mean_interval([0.0, 0.0, 0.3], of_shares=True)[1] == 0.0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_calibration_with_a_partner_carries_the_studies(tokenizer, splits, tmp_path, monkeypatch):
    """Probe and studies reach the artifact, patching among them."""
    monkeypatch.setattr("calibration.studies.neurons.patching_study.SHARES", (0.05, 1.0))
    folders = {"aligned": tmp_path / "aligned", "partner": tmp_path / "partner"}
    for folder, chat in zip(folders.values(), make_pair(tokenizer), strict=True):
        chat.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    settings = Settings(full=True, partner=folders["partner"])
    calibrate(folders["aligned"], read_splits(**splits), tmp_path / "artifact", settings)
    artifact = Artifact.load(tmp_path / "artifact")
    assert "neurons" in {probe.name for probe in artifact.manifest.probes}
    studies = {study.name: study for study in Evidence.of(artifact).studies}
    assert {"safety_neurons", "neuron_count", "neuron_patching", "alignment_tax"} <= studies.keys()
    assert "appears in refusals" in studies["neuron_patching"].finding
