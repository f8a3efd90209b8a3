"""Activations through vLLM are the model's own: those of Transformers, but for the rounding of its precision."""

import contextlib
import shutil

import numpy as np
import pytest
import torch

from calibration.evaluation.evaluation_run import Loaded
from calibration.fitting.bank import uncertified
from calibration.fitting.fitted import FittedProbe
from calibration.fitting.metrics import auroc
from calibration.fitting.training_set import TrainingSet
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.model.chat_model import ChatModel
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts, template_suffix
from calibration.recording.activations import record
from calibration.recording.engine_source import EngineSource, engine_folder, find_engine
from calibration.recording.places import every_place
from probes.errors import CalibrationError, PromptError, ServingError
from probes.fingerprint import fingerprint
from probes.manifest import Probe
from probes.readout import Readout
from serving.offline.recording import vllm_engine
from tests.serving.lab import LAB, MODEL

ROWS = 400
# bfloat16 keeps 8 bits, and six blocks add their roundings. Measured: medians up to 0.6 %; the worst prompt 1.2 % on a
# CPU with AMX, 2.0 % on one with AVX-512 and no bfloat16 instructions.
MEDIAN, WORST = 0.01, 0.03
# In standard deviations of the probe. Measured: medians up to 0.006, the worst prompt 0.04 (fitted probes: 0.003 and
# 0.015).
MEDIAN_SCORE, WORST_SCORE = 0.01, 0.05


@pytest.fixture(scope="module")
def chat():
    """The shipped bfloat16 weights, computed in float32: Transformers' bfloat16 passes stray ten times as far as
    vLLM's.
    """
    return ChatModel.load(MODEL, arithmetic=torch.float32)


@pytest.fixture(scope="module")
def encoded(chat):
    """The shortest and the longest prompts of the training file, and some between."""
    prompts = encode_prompts(chat.tokenizer, load_prompts(LAB / "prompts" / "train.jsonl"), chat.context)
    order = np.argsort(prompts.lengths, kind="stable")
    return prompts.subset(
        np.sort([*order[:8], *order[-8:], *np.random.default_rng(0).choice(order[8:-8], ROWS - 16, False)])
    )


@pytest.fixture(scope="module")
def where(chat):
    return every_place(len(template_suffix(chat.tokenizer)))


@pytest.fixture(scope="module")
def plain(chat, encoded, where, tmp_path_factory):
    """What Transformers computes."""
    return record(chat, encoded, where, tmp_path_factory.mktemp("hf"))


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(("--enforce-eager",), id="eager", marks=pytest.mark.long),
        pytest.param(("--max-num-batched-tokens", "256"), id="compiled"),
    ],
)
def test_the_engine_gives_the_models_own_activations(chat, encoded, where, plain, mode, tmp_path):
    """At every block and place, within bfloat16's rounding; long prompts in chunks too; and the same direction
    follows.
    """
    source = EngineSource(vllm_engine, MODEL, mode, tmp_path, chat)
    served = record(chat, encoded, where, tmp_path / "shards", source=source)
    for layer in range(chat.num_layers):
        for place in where:
            ours, theirs = plain.features(layer, place), served.features(layer, place)
            error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(ours, axis=1)
            assert np.median(error) < MEDIAN, (layer, place)
            assert error.max() < WORST, (layer, place)
    offset = len(template_suffix(chat.tokenizer))
    found = [TrainingSet.split(chat, encoded, recording, offset) for recording in (plain, served)]
    areas = []
    for training in found:
        harmless, harmful = training.moments(3, 0, training.fit)
        projection = training.project(3, 0, harmful.mean - harmless.mean)[training.select]
        areas.append(
            auroc(projection[training.harmful[training.select]], projection[~training.harmful[training.select]])
        )
    assert areas[1] == pytest.approx(areas[0], abs=0.005)
    ours, theirs = (fit_harmfulness_direction(training).probes[0] for training in found)
    assert theirs.spec.evidence["selection_auroc"] == pytest.approx(ours.spec.evidence["selection_auroc"], abs=0.01)


READOUTS = {
    "end": Readout(),
    "request": Readout(offset=4),
    "mean": Readout(kind="mean"),
    "max": Readout(kind="max"),
    "swim": Readout(kind="swim", window=8),
}


@pytest.fixture(scope="module")
def artifact(chat):
    """Random probes: of every kind of readout in two blocks together, and of one block's neurons; no threshold yet."""
    draw, width = torch.Generator().manual_seed(0), chat.model.config.intermediate_size
    streams = [
        FittedProbe(
            Probe(name=name, method="random", layers=(2, 4), readout=readout),
            torch.randn(2, 1, chat.hidden_size, generator=draw),
        )
        for name, readout in READOUTS.items()
    ]
    neurons = Probe(name="neurons", method="random", site="mlp_neurons", width=width, layers=(3,))
    probes = [*streams, FittedProbe(neurons, torch.randn(1, 1, width, generator=draw))]
    return uncertified(fingerprint(MODEL), probes)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_the_engine_gives_the_scores_that_the_guard_will_see(chat, encoded, artifact, tmp_path):
    """Every probe's score within bfloat16's rounding of Transformers', chunked prompts too, and the same order of
    prompts.
    """
    options = ("--enforce-eager", "--max-num-batched-tokens", "256")
    loaded = Loaded(chat, artifact, skip_long=False)
    engine = loaded.through("vllm", options, model=MODEL, dtype="auto", folder=tmp_path)
    names = [probe.name for probe in artifact.manifest.probes]
    plain, served = (each.score(encoded, "scoring") for each in (loaded, engine))
    for name, ours, theirs in zip(names, plain.T, served.T, strict=True):
        spread = np.abs(ours - theirs) / ours.std()
        assert np.median(spread) < MEDIAN_SCORE, name
        assert spread.max() < WORST_SCORE, name


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_an_engine_that_does_not_start_shows_the_end_of_its_log(chat, encoded, where, tmp_path):
    """Arguments that vLLM does not know are named, with where to read more."""
    source = EngineSource(vllm_engine, MODEL, ("--no-such-argument",), tmp_path, chat)
    with pytest.raises(ServingError, match="no-such-argument") as caught:
        record(chat, encoded, where, tmp_path / "shards", source=source)
    assert "engine.log" in caught.value.remedy


@pytest.mark.parametrize(("error", "stays"), [(None, False), (PromptError, False), (ServingError, True)])
def test_the_log_of_an_engine_that_failed_stays(error, stays):
    """What the error names is there to be read; where something else went wrong nothing is left behind."""
    with contextlib.suppress(PromptError, ServingError), engine_folder() as folder:
        (folder / "engine.log").write_text("why")
        if error:
            raise error("it failed", field="x", remedy="y")
    assert (folder / "engine.log").exists() == stays
    shutil.rmtree(folder, ignore_errors=True)


def test_the_engine_is_found_by_its_entry_point():
    """Calibration imports no engine: it asks for one by name, and says which there are."""
    assert find_engine("vllm") is vllm_engine
    with pytest.raises(CalibrationError, match="'tensorrt' is no engine") as caught:
        find_engine("tensorrt")
    assert "hf, vllm" in caught.value.remedy
