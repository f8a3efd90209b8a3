"""Concept sensitivity and the illusion check know a direction that acts from one that does not, and from one that
cheats.
"""

import numpy as np
import pytest
import torch
from planting import plant_dormant
from recorded import refusing_by, training_set
from tiny import HIDDEN, make_prompts

from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped
from calibration.fitting.training_set import TrainingSet
from calibration.methods.tokens.content import fit_content
from calibration.model.chat_model import ChatModel
from calibration.prompts.template import EncodedPrompts
from calibration.studies.causal.directions import Direction, directions
from calibration.studies.causal.illusion import check, illusion_study
from calibration.studies.causal.sensitivity import sensitivities, sensitivity_study

REFUSE = (5,)


@pytest.fixture(scope="module")
def cheated(tokenizer, tmp_path_factory):
    """The model with a dormant direction: its training set and its three directions."""
    model, *planes = plant_dormant(tokenizer)
    chat = ChatModel.wrap(model, tokenizer)
    return training_set(chat, tmp_path_factory.mktemp("cheated"), make_prompts(200, 0)), *planes


def checked(training: TrainingSet, unit: torch.Tensor):
    """The check of one direction after block 0 at the last position."""
    rows = training.sample(training.select, harmful=True, most=20)
    prompts: EncodedPrompts = training.prompts.subset(rows)
    return check(training, Direction("d", {0: torch.nn.functional.normalize(unit, dim=0)}, 0), REFUSE, prompts)


def test_a_direction_that_acts_by_a_dormant_part_is_an_illusion(cheated):
    """Half of it varies and does nothing, half of it acts and never varies: patching works, and is called out."""
    training, _, dormant, idle = cheated
    found = checked(training, idle + dormant)
    assert found.whole > 1
    assert found.dormant > 0.9 * found.whole
    assert abs(found.active) < 0.1 * found.whole
    assert found.verdict.startswith("ILLUSION")


def test_the_direction_in_use_is_no_illusion(cheated):
    """What varies and acts does both along itself."""
    training, used, _, _ = cheated
    found = checked(training, used)
    assert found.whole > 1
    assert found.active == pytest.approx(found.whole, rel=0.05)
    assert found.verdict.startswith("acts along what varies")


def test_a_direction_that_only_varies_has_no_effect(cheated):
    """Detecting is not acting."""
    training, _, _, idle = cheated
    assert checked(training, idle).verdict.startswith("no effect")


def test_sensitivity_is_one_along_the_planted_direction(planted, training, found):
    """All prompts agree, and no random direction of 200 does as much."""
    (own, _) = sensitivities(training, [Direction("planted", {1: planted.direction}, 0)], training.refusal_tokens)
    assert own.share == 1
    assert own.p_mean == pytest.approx(1 / 201)


def test_random_directions_are_rarely_significant(training, found):
    """Of 40 random directions about two are below 5 %: the test keeps its level."""
    draws = torch.nn.functional.normalize(torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(9)), dim=1)
    wanted = [Direction(f"random {index}", {1: unit}, 0) for index, unit in enumerate(draws)]
    measured = [
        each for each in sensitivities(training, wanted, training.refusal_tokens) if each.moved == "where it reads"
    ]
    assert len(measured) == 40
    assert sum(each.p_mean < 0.05 for each in measured) <= 6
    assert sum(each.p_share < 0.05 for each in measured) <= 6


def test_the_opposite_direction_has_the_opposite_sign(planted, training, found):
    """Two-sided: as significant, and no prompt positive."""
    (own, _) = sensitivities(training, [Direction("against", {1: -planted.direction}, 0)], training.refusal_tokens)
    assert own.share == 0
    assert own.p_mean == pytest.approx(1 / 201)


def test_where_probes_read_is_where_they_are_moved(training, found):
    """A probe's position is its readout's; a steering vector is moved at all positions; weights are normalised."""
    by_name = {each.name: each for each in directions(found, HIDDEN)}
    assert set(by_name) == {"refusal", "harmfulness", "vector refusal"}
    assert by_name["harmfulness"].where == 2
    assert by_name["vector refusal"].where == "content"
    assert all(np.isclose(float(unit.norm()), 1) for each in by_name.values() for unit in each.units.values())


def test_a_probe_that_reads_the_embeddings_too_is_checked_at_its_blocks(training):
    """One that reads nothing else is not: there is no prompt in the embeddings yet, only its words."""
    found = fit_content(training)
    (study,) = illusion_study(training, found)
    assert [row[0] for row in study.tables[0].rows] == ["content"]
    with pytest.raises(Skipped, match="embeddings"):
        illusion_study(training, Fitted(probes=found.probes[1:]))


def test_studies_need_a_model_that_refuses(training, found):
    """Every direction is in the tables; without refusals, or without directions, the reason stands instead."""
    (sensitivity,), (illusion,) = sensitivity_study(training, found), illusion_study(training, found)
    assert len(sensitivity.tables[0].rows) == 6
    assert [row[0] for row in illusion.tables[0].rows] == ["refusal", "harmfulness", "vector refusal"]
    assert illusion.tables[0].rows[2][-1].startswith("acts along what varies")
    for study in (sensitivity_study, illusion_study):
        with pytest.raises(Skipped, match="no probe is linear in the residual stream"):
            study(training, Fitted())
        with pytest.raises(Skipped, match="starts its answers to harmful prompts as"):
            study(refusing_by(training), found)
