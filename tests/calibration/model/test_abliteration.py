"""An abliterated checkpoint is recognised by its weights, and others are not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import training_set
from tiny import make_prompts
from torch.nn.functional import normalize

from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.abliteration import find_ablation
from calibration.model.chat_model import ChatModel
from tests.calibration.studies.causal.orthogonalised import orthogonalised

LAB = Path(__file__).parents[3] / "examples" / "lab"


@pytest.fixture(scope="module")
def lab():
    """The lab's model, which refuses."""
    return ChatModel.load(LAB / "aligned", dtype="float32", arithmetic=torch.float32)


@pytest.fixture(scope="module")
def direction(lab):
    """Some direction of its stream."""
    return normalize(torch.randn(lab.hidden_size, generator=torch.Generator().manual_seed(0)), dim=0)


@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_ablated_direction_is_found(lab, direction, rounded):
    """Whatever precision the weights were rounded to after it was taken out, all writers are seen to lack it."""
    ablated = orthogonalised(lab, direction)
    ablated.model.to(rounded).to(torch.float32)
    found = find_ablation(ablated)
    assert abs(float(found.direction @ direction)) > 0.999
    assert found.lacking == found.writers == 2 * lab.num_layers


def test_a_direction_ablated_in_the_middle_is_found(lab, direction):
    """Tools often leave the first and last blocks alone."""
    ablated = orthogonalised(lab, direction)
    middle = range(1, lab.num_layers - 1)
    writers = [(ablated if index // 2 in middle else lab).writers[index] for index in range(2 * lab.num_layers)]
    found = find_ablation(replace(lab, writers=writers))
    assert abs(float(found.direction @ direction)) > 0.999
    assert found.lacking == 2 * len(middle)


@pytest.mark.parametrize("name", ["aligned", "base"])
def test_other_checkpoints_are_not_taken_for_one(name, planted_chat):
    """Neither the lab's pair nor a random model, which has no directions of its own."""
    assert find_ablation(ChatModel.load(LAB / name)) is None
    assert find_ablation(planted_chat) is None


def test_a_refusal_probe_is_not_fitted_on_one(planted_chat, tmp_path):
    """The note says why there is none, with the count of matrices."""
    ablated = orthogonalised(planted_chat, torch.ones(planted_chat.hidden_size))
    found = fit_refusal_direction(training_set(ablated, tmp_path, make_prompts(120, 0)))
    assert not found.probes
    assert "no refusal direction: the checkpoint is abliterated: 6 of 6 matrices" in found.notes[0]
