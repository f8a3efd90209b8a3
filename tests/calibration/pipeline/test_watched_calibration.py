"""A calibration that also watches answers: one stage more, and nothing else changes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from brief import BRIEF

from calibration.methods.watches import answering
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import stream_of
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.kept import WORK
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.splits import SPLITS, read_splits
from calibration.prompts.template import encode_prompts
from calibration.report.evidence import Evidence
from probes.answer_reading import AnswersRead, WatchBank
from probes.artifact import BENIGN_ANSWERS, HARMFUL_ANSWERS, Artifact
from probes.errors import CalibrationError
from probes.scoring import ProbeBank

TOKENS = 6
WATCHING = replace(BRIEF, watch_answers=TOKENS, keep_work=True)


@dataclass(frozen=True)
class Watched:
    """A calibration with watches that was stopped while the model answered, and begun again."""

    out: Path
    answered: tuple[int, int]
    """Batches that were answered until it was stopped, and when it went on."""


@pytest.fixture(scope="module")
def watched(planted, splits, tmp_path_factory):
    """The brief calibration with watches, stopped in its seventh batch of answers and begun again."""
    out, files = tmp_path_factory.mktemp("watched") / "artifact", [splits[split] for split in SPLITS]
    original, counts = answering.reply, []

    def counting(*arguments):
        if counts[-1] == 6 and len(counts) == 1:
            raise KeyboardInterrupt
        counts[-1] += 1
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answering, "reply", counting)
        counts.append(0)
        with pytest.raises(KeyboardInterrupt):
            calibrate(planted.folder, read_splits(*files), out, WATCHING)
        assert not out.exists()
        counts.append(0)
        calibrate(planted.folder, read_splits(*files), out, WATCHING)
    return Watched(out, tuple(counts))


def test_without_it_the_artifact_is_what_it_was(brief, watched):
    """No watch, no tensor and no study unless asked for; asked for, everything else has the same bits."""
    off, on = Artifact.load(brief[1]), Artifact.load(watched.out)
    more = {name for watch in on.manifest.watches for name in watch.shapes} | {BENIGN_ANSWERS, HARMFUL_ANSWERS}
    assert on.manifest.watches
    assert off.manifest.watches == ()
    assert set(on.tensors) - set(off.tensors) == more
    assert all(torch.equal(on.tensors[name], tensor) for name, tensor in off.tensors.items())
    changed = {"created": "", "digest": "", "tensors_sha256": "", "attachments": {}, "watches": ()}
    assert on.manifest.model_copy(update=changed) == off.manifest.model_copy(update=changed)
    studies = [{study.name for study in Evidence.of(each).studies} for each in (on, off)]
    assert studies[0] - studies[1] == {"watched_answers"}


def test_an_artifact_s_watches_read_an_answer_as_they_were_certified(watched, planted, splits):
    """From the saved artifact alone, token by token as it is generated, harmless answers get the scores that it
    holds.
    """
    artifact = Artifact.load(watched.out)
    chat, probes = ChatModel.load(planted.folder), ProbeBank.from_artifact(artifact)
    bank = WatchBank.of(artifact.manifest.watches, artifact.tensors)
    channels = [probes.channel(watch.probe) for watch in bank.watches]
    prompts = encode_prompts(chat.tokenizer, load_prompts(splits["validation"]), chat.context)
    harmless = [ids for ids, harmful in zip(prompts.token_ids, prompts.harmful, strict=True) if not harmful]
    stored, streams = artifact.tensors[BENIGN_ANSWERS].numpy(), {}
    for layer, block in enumerate(chat.blocks):
        block.register_forward_hook(lambda _b, _a, out, layer=layer: streams.update({layer: stream_of(out)[0, -1:]}))
    assert len(stored) == len(harmless) == 336
    for row in range(0, 336, 24):
        read, only = AnswersRead(bank, 1), np.array([0])
        read.begin(only)
        text = list(harmless[row])
        for place in range(TOKENS):
            logits = chat.model(input_ids=torch.tensor([text])).logits
            if place:  # the pass that read an answer's token, and gives the next one
                taps = {tap: streams[tap.layer] for tap in probes.readings}
                read.read(only, probes.token_scores(taps)[:, channels])
            text.append(int(logits[0, -1].argmax()))
            if text[-1] == chat.tokenizer.eos_token_id:
                break
        assert stored[row] == pytest.approx(read.scores(only)[0], abs=1e-3)


def test_refusals_are_not_taken_for_harmful_answers(watched):
    """The planted model refuses what is harmful: the study says how often, and recall is of the answered ones or of
    none.
    """
    artifact = Artifact.load(watched.out)
    study = next(study for study in Evidence.of(artifact).studies if study.name == "watched_answers")
    rows = {row[:2]: row for row in study.tables[0].rows}
    assert rows["validation", "harmful"][6] > 0.5
    assert rows["validation", "harmless"][6] < 0.2
    assert len(artifact.tensors[HARMFUL_ANSWERS]) == rows["validation", "harmful"][5]
    assert len({table.name for table in study.tables} & {"recall", "by length"}) == 2


def test_stopped_in_the_middle_of_answering_it_went_on(watched):
    """What was answered was not answered again, and what was asked for stands among the inputs."""
    (work,) = (watched.out.parent / WORK).iterdir()
    assert watched.answered[0] == 6
    assert sum(watched.answered) == len(list(work.rglob("answers-*/*/*.safetensors")))
    (begun,) = work.glob("settings-*.json")
    assert json.loads(begun.read_text())["settings"]["watch_answers"] == TOKENS


def test_answers_of_another_length_are_other_answers(planted, splits, tmp_path):
    """What was answered for one length is never taken for another; what does not depend on it is not done again."""
    for tokens in (3, 6):
        settings = replace(BRIEF, watch_answers=tokens, keep_work=True)
        calibrate(planted.folder, read_splits(**splits), tmp_path / "a", settings)
    (work,) = (tmp_path / WORK).iterdir()
    assert len(list(work.glob("answers-*"))) == 2
    assert [len(list(work.glob(f"{name}-*"))) for name in ("activations", "fitted-classifiers", "admitted")] == [
        1,
        1,
        1,
    ]


def test_answers_too_short_to_read_are_refused_before_any_work(splits, tmp_path):
    """Of one token nothing is read."""
    with pytest.raises(CalibrationError, match="nothing can be read"):
        calibrate(tmp_path / "none", read_splits(**splits), tmp_path / "a", replace(BRIEF, watch_answers=1))
