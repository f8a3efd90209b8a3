"""Every vector is measured in one way, and what costs benign prompts too much, or disarms the model, does not pass."""

import numpy as np
import pytest
import torch
from recorded import refusing_by, training_set
from tiny import make_prompts

from calibration.evaluation.unseen.contenders import recorded_scores
from calibration.fitting.fitted import Fitted, FittedSteering
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.methods.steering.admission import admit, recommended
from calibration.methods.steering.continuation import TOKENS, Continuations
from calibration.methods.steering.dose_response import Dose, StrengthSweep
from calibration.methods.steering.vectors import fit_steering
from calibration.model.intervention import at, since, steered
from calibration.prompts.batching import iterate_batches
from probes.manifest import SteeringVector
from probes.steering import Move, displacement

LAYER = 1


@pytest.fixture
def training(planted_chat, tmp_path):
    """Recorded prompts of the planted model."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


def vector(name, row, **keys):
    """A vector to add on block 1."""
    spec = SteeringVector(name=name, method="m", layers=(LAYER,), norm=1.0, cos_refusal=0.0, **keys)
    tensors = {"vector": row[None]}
    if spec.gate:
        tensors |= {"gate_weight": torch.zeros_like(row)[None], "gate_bias": torch.full((1, 1), -1.0)}
    return FittedSteering(spec, tensors)


def judged(training, methods, **options):
    """What is admitted, measured on the training prompts themselves."""
    scores = np.stack([recorded_scores(training, probe) for probe in methods.probes], axis=1)
    return admit(training, methods, training.prompts, scores, **options)


def found(training, planted, *steering):
    """What the methods gave, with some vectors of our own."""
    refusal, harmfulness = fit_refusal_direction(training), fit_harmfulness_direction(training)
    return Fitted(harmfulness.probes, (*refusal.steering, *steering))


def test_costly_and_disarming_vectors_are_left_out_with_their_numbers(training, planted):
    """Towards refusal at any price: over the budget.

    Away from it: disarming. Both are named, with what was measured.
    """
    push = 60 * planted.direction
    admitted = judged(training, found(training, planted, vector("heavy", push), vector("disarm", -push)))
    assert [each.spec.name for each in admitted.steering] == ["refusal"]
    notes = dict(zip(("heavy", "disarm"), admitted.notes, strict=True))
    assert "nats, and the budget is 0.1" in notes["heavy"]
    assert "heavy is left out" in notes["heavy"]
    assert "harmful prompts" in notes["disarm"]
    study = admitted.studies[-1]
    assert {row[0]: row[-1] == "in the artifact" for row in study.tables[0].rows} == {
        "refusal": True,
        "heavy": False,
        "disarm": False,
    }
    assert "1 go into the artifact: refusal" in study.finding


def test_vectors_are_measured_whichever_method_gave_them(training):
    """Families alone, without the refusal direction: none goes in unmeasured, and nothing is said of a cosine with
    it.
    """
    found = Fitted(fit_harmfulness_direction(training).probes, fit_steering(training).steering)
    admitted = judged(training, found, keep_costly=True)
    assert admitted.steering
    assert all({"kl_benign", "kl_continuation", "recommended"} <= set(e.spec.evidence) for e in admitted.steering)
    assert all(each.spec.cos_refusal == 0 for each in admitted.steering)
    assert len(admitted.steering) + len(admitted.notes) == len(found.steering)
    assert len(admitted.studies[-1].tables[0].rows) == len(found.steering)


def test_a_vector_that_nothing_can_measure_is_left_out(training, planted):
    """On a model that does not refuse, no dose shows what a vector does: a note names it, and it is not in the
    artifact.
    """
    untold = refusing_by(training)
    admitted = judged(untold, Fitted(fit_harmfulness_direction(training).probes, (vector("heavy", planted.direction),)))
    assert admitted.steering == ()
    assert admitted.notes[0].startswith("steering vector heavy is left out: there are no refusals to measure it by")
    assert "as it starts all others" in admitted.not_asked["steering"]
    assert judged(training, Fitted(fit_harmfulness_direction(training).probes)).not_asked == {
        "steering": "no steering vector was fitted"
    }


def test_what_the_model_refuses_is_asked_once(training):
    """All that is fitted and measured on a training set speaks of the same tokens, and one pass has found them."""
    passes = []
    handle = training.chat.model.register_forward_pre_hook(lambda *_: passes.append(None))
    tokens = training.refusal_tokens
    first = len(passes)
    assert first > 0
    assert training.refusal_tokens is tokens
    handle.remove()
    assert len(passes) == first


def test_an_override_keeps_the_costly_and_not_the_disarming(training, planted):
    """Whoever asks for it gets vectors over the budget, with their evidence; what makes the model refuse less,
    never.
    """
    push = 60 * planted.direction
    admitted = judged(
        training, found(training, planted, vector("heavy", push), vector("disarm", -push)), keep_costly=True
    )
    assert [each.spec.name for each in admitted.steering] == ["refusal", "heavy"]
    heavy = admitted.steering[1].spec
    assert heavy.evidence["kl_benign"] > 0.1
    assert heavy.cos_refusal > 0.9
    assert len(admitted.notes) == 1


def test_a_vector_is_measured_through_its_gate(training, planted):
    """Behind a gate that never opens the price is exactly nothing, whatever the vector: unlike without it."""
    shut = vector("shut", 60 * planted.direction, gate="hard")
    evidence = {
        each.spec.name: each.spec.evidence
        for each in judged(training, found(training, planted, shut), keep_costly=True).steering
    }
    trial = StrengthSweep.of(training, training.refusal_tokens)
    assert trial.curve(shut, [1.0])[1].kl_harmless == 0
    assert evidence["refusal"]["kl_benign"] > 0
    assert "shut" not in evidence or evidence["shut"]["kl_benign"] == 0


def test_the_refusal_vector_is_judged_behind_a_rule(training, planted):
    """Its price is 1 % of what it does to the harmless prompts that a probe ranks highest; both numbers are kept."""
    (refusal,) = judged(training, found(training, planted)).steering
    evidence = refusal.spec.evidence
    assert evidence["kl_behind_rule"] == pytest.approx(0.01 * evidence["kl_flagged"])
    assert evidence["refused_harmful"] >= evidence["refused_harmful_before"]
    assert refusal.spec.cos_refusal == pytest.approx(1)
    strict = judged(training, found(training, planted), budget=1e-9)
    assert not strict.steering
    assert "behind a 1 % rule" in strict.notes[-1]


def dose(strength, refused):
    return Dose(
        strength=strength,
        refusal_harmful=0,
        refusal_harmless=0,
        refused_harmful=refused,
        refused_harmless=0,
        kl_harmless=strength,
    )


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(0, 0.5), (0.5, 0.6), (1, 0.99), (2, 1.0)], 1),
        ([(0, 0.5), (0.5, 0.7), (1, 0.7), (2, 0.6)], 0.5),
        ([(0, 1.0), (0.5, 1.0), (1, 1.0), (2, 1.0)], 1),
    ],
)
def test_the_recommended_dose_is_the_least_that_does_all_it_can(curve, expected):
    """More is not recommended where it adds nothing; where nothing can be seen, strength 1 is."""
    assert recommended([dose(*each) for each in curve]).strength == expected


def test_the_continuation_is_the_model_s_own(planted_chat, training):
    """Greedy tokens agree with transformers' generate; without strength the KL is zero, and a schedule lowers it."""
    prompts = training.prompts.subset(training.sample(training.select, harmful=False, most=5))
    answers = Continuations.of(planted_chat, prompts)
    for row, ids in enumerate(prompts.token_ids):
        expected = planted_chat.model.generate(
            torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert list(answers.token_ids[row]) == expected[0].tolist()
    push = torch.randn(planted_chat.hidden_size, generator=torch.Generator().manual_seed(0)) * 5
    assert answers.kl(vector("v", push), 0.0) == pytest.approx(0, abs=1e-6)
    whole, once = (answers.kl(vector("v", push, schedule=each), 1.0) for each in ((), (1.0, 0.0)))
    assert whole > once > 0


def test_strengths_begin_where_the_server_begins(planted_chat, training):
    """From the prompt's last position on, along the schedule; before it, and at padding's prompts, the stream stays."""
    prompts = training.prompts.subset([0, 1, 2])
    batch = next(iterate_batches(prompts.token_ids, planted_chat.device))
    stream = torch.zeros(len(batch.rows), batch.input_ids.shape[1], 4)
    found = since(batch.from_end(2), 2.0, (1.0, 0.5))(stream)
    for row, length in enumerate(batch.lengths.tolist()):
        assert found[row, : length - 3].sum() == 0
        assert found[row, length - 3 : length].tolist() == [2.0, 1.0, 1.0]
    assert at(batch.from_end(0), 3.0)(stream).sum() == 3.0 * len(batch.rows)


def test_the_hook_applies_the_operator_itself(planted_chat, training):
    """The stream after the block is what the operator of the ground floor makes of the stream before."""
    from calibration.recording.activations import read_blocks

    batch = next(iterate_batches(training.prompts.token_ids[:4], planted_chat.device))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(4, planted_chat.hidden_size, generator=generator)
    move = Move(
        0, "affine", "soft", (rows[0], rows[1], -20 * rows[2].abs(), 20 * rows[2].abs(), rows[3], torch.ones(1))
    )
    with read_blocks(planted_chat, [LAYER], lambda stream: stream.clone()) as plain:
        planted_chat.last_logits(batch)
    with (
        steered(planted_chat, {LAYER: move}, since(batch.from_end(0), 0.7)),
        read_blocks(planted_chat, [LAYER], lambda stream: stream.clone()) as after,
    ):
        planted_chat.last_logits(batch)
    for row, last in enumerate(batch.from_end(0).tolist()):
        before = plain[LAYER][row]
        assert torch.equal(after[LAYER][row, :last], before[:last])
        expected = before[last : last + 1] + displacement(before[last : last + 1], torch.tensor([[0.7]]), [move])
        torch.testing.assert_close(after[LAYER][row, last], expected[0])
