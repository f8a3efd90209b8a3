"""Whole answers under steering vectors, as the server steers them, on a model whose refusals are planted."""

from dataclasses import replace

import pytest
import torch
from recorded import training_set
from tiny import make_prompts

from calibration.fitting.fitted import Fitted, FittedSteering
from calibration.fitting.study import Skipped
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.generation import generate
from calibration.studies.steering.steered_answers import _measured, _steered, steered_answer_study


@pytest.fixture
def training(planted_chat, tmp_path):
    """Recorded prompts of the planted model."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


@pytest.fixture
def refusal(training):
    """The planted direction, as it was found."""
    return fit_refusal_direction(training).steering[0]


def recommended(of: FittedSteering, name: str, strength: float, **changes: torch.Tensor) -> FittedSteering:
    """Return a copy of the vector under another name, with a strength to be served at."""
    evidence = {**of.spec.evidence, "recommended": strength}
    return replace(
        of, spec=of.spec.model_copy(update={"name": name, "evidence": evidence}), tensors={**of.tensors, **changes}
    )


def test_a_vector_s_answers_are_on_the_table_beside_the_untouched_ones(training, refusal):
    """Steering refuses what is harmless; none at strength 0 changes a token; and the samples are of answers that
    changed.
    """
    strong = recommended(refusal, "strong", 2 * refusal.spec.evidence["strength"])
    none = recommended(refusal, "none", 0.0)
    (study,) = steered_answer_study(training, Fitted(steering=(refusal, strong, none)))
    rows = {row[0]: row[1:] for row in study.tables[0].rows}
    assert rows["harmful, untouched"][0] > 0.6
    assert rows["harmless, untouched"][0] < 0.1
    assert rows["harmful, none at 0"] == rows["harmful, untouched"]
    assert rows["harmless, none at 0"] == rows["harmless, untouched"]
    steered = next(row for name, row in rows.items() if name.startswith("harmless, strong"))
    assert steered[0] > 0.9
    assert steered[2] < 0.1
    tables = {table.name: table for table in study.tables}
    assert set(tables) == {
        "answers",
        "samples_strong",
        "samples_none",
    }  # not of one that has no strength to be served at
    assert tables["samples_none"].rows == ()


def test_a_readable_refusal_is_one_that_the_untouched_model_could_have_given(training, refusal):
    """A vector that pushes the model off its course makes none."""
    noise = torch.randn(refusal.vector.shape, generator=torch.Generator().manual_seed(0))
    wild = recommended(refusal, "wild", 1.0, vector=1e3 * noise)
    (study,) = steered_answer_study(training, Fitted(steering=(wild,)))
    assert next(row for row in study.tables[0].rows if row[0].startswith("harmful, wild"))[2] == 0


def test_answers_are_measured_as_each_alone(training):
    """The mean surprise of an answer's tokens behind the first agrees with a pass over prompt and answer alone."""
    chat, prompts = training.chat, training.prompts.subset(range(7))
    answers = generate(chat, prompts, 6)
    found = _measured(chat, prompts, answers).surprise
    for ids, answer, surprise in zip(prompts.token_ids, answers, found, strict=True):
        logits = chat.model(input_ids=torch.tensor([[*ids, *answer]])).logits[0].log_softmax(dim=-1)
        each = [-float(logits[len(ids) - 1 + at, token]) for at, token in enumerate(answer)][1:]
        assert surprise == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-4)


def test_an_answer_is_steered_from_the_prompt_s_last_token_on(training, refusal):
    """Token by token with the cache of keys and values, as in passes over the whole text that begin anew."""
    from calibration.model.intervention import since, steered
    from calibration.prompts.batching import make_batch
    from probes.steering import moves_of

    chat, strength = training.chat, refusal.spec.evidence["strength"]
    prompts = training.prompts.subset(range(4))
    for ids, answer in zip(prompts.token_ids, _steered(chat, prompts, refusal, strength), strict=True):
        batch = make_batch([(*ids, *answer)], [0], chat.device)
        start = torch.tensor([len(ids) - 1])
        with steered(chat, moves_of(refusal.spec, refusal.tensors), since(start, strength)):
            logits = chat.logits_at(batch, torch.arange(len(ids) - 1, batch.input_ids.shape[1] - 1)[None])[0]
        assert tuple(logits.argmax(dim=-1).tolist()) == answer


def test_without_a_vector_to_serve_the_study_is_not_asked(training, refusal):
    """It says why."""
    with pytest.raises(Skipped, match="recommended strength"):
        steered_answer_study(training, Fitted(steering=(refusal,)))
