"""A graft blinds what reads the grafted place, and nothing that reads elsewhere; refusals go with it."""

import numpy as np
import pytest
import torch
from recorded import refusing_by, training_set
from tiny import LAYERS, make_prompts

from calibration.fitting.fitted import Fitted, FittedProbe, merge
from calibration.fitting.study import Skipped
from calibration.methods.classifiers.linear_classifiers import fit_classifiers
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.intervention import grafted
from calibration.prompts.batching import make_batch
from calibration.recording.activations import read_blocks
from calibration.studies.grafting.grafting import PatchingSetup
from calibration.studies.grafting.grafting_study import grafting
from probes.readout import Readout

TOKENS = [[1, 2, 40, 50, 60, 3, 4], [1, 2, 70, 3, 4]]


def test_a_graft_changes_one_position_after_one_block(chat):
    """The stream there is what was given, every other position and every earlier block is as before, and hooks are
    gone.
    """
    batch = make_batch(TOKENS, [0, 1], chat.device)
    given = torch.randn(2, chat.hidden_size, generator=torch.Generator().manual_seed(0))

    def streams():
        with read_blocks(chat, range(LAYERS), lambda stream: stream) as kept:
            chat.last_logits(batch)
        return kept

    before = streams()
    with grafted(chat, 1, given, batch.from_end(0)):
        after = streams()
    assert torch.equal(after[1][[0, 1], [6, 4]], given)
    assert torch.equal(after[0], before[0])
    for row, last in ((0, 6), (1, 4)):
        for layer in (1, 2):
            torch.testing.assert_close(after[layer][row, :last], before[layer][row, :last])
    assert (after[2][0, 6] - before[2][0, 6]).abs().max() > 1e-3
    again = streams()
    assert all(torch.equal(again[layer], before[layer]) for layer in range(LAYERS))


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's recorded prompts: its first block decides, and writes the decision at every position."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


@pytest.fixture
def found(training):
    """Its probes, with one that reads block 0 and one that reads block 2, both at the last token."""
    found = merge([fit_refusal_direction(training), fit_harmfulness_direction(training), fit_classifiers(training)])
    refusal = found.probes[0]
    assert refusal.spec.name == "refusal"
    at = [FittedProbe(refusal.spec.model_copy(update=place(layer)), refusal.weight) for layer in (0, 2)]
    return Fitted(probes=(*found.probes, *at))


def place(layer):
    """What makes the refusal probe read the last token of another block."""
    return {"name": f"last_{layer}", "layers": (layer,), "readout": Readout(kind="last", offset=0)}


def test_probes_at_other_positions_and_earlier_blocks_survive(training, found):
    """Grafted after the last block: refusals vanish, its reading is the donor's; block 0's and the instruction's
    stay.
    """
    setup = PatchingSetup.of(training, found)
    donors = setup.answered[: len(setup.refused)]
    plain, attacked = setup.trial(None, donors), setup.trial(2, donors)
    assert plain.refused.value == 1.0
    assert attacked.refused.value == 0.0
    assert min(plain.recall[name].value for name in ("last_0", "last_2", "harmfulness", "pooled")) > 0.95
    assert attacked.recall["last_0"].value == plain.recall["last_0"].value
    assert attacked.recall["harmfulness"].value == plain.recall["harmfulness"].value
    assert attacked.recall["last_2"].value == 0.0  # no donor is above the cut, being one of those that set it
    assert setup.trial(1, donors).refused.value == 0.0
    assert setup.trial(1, np.roll(setup.refused, 1)).refused.value == 1.0


def test_the_study_names_survivors_and_blinded(training, found):
    """It has a line for every probe, both kinds of donor, and says which probes keep their recall."""
    (study,) = grafting(training, found)
    attack, control = study.charts[0].series
    assert min(attack.y) == 0.0
    assert min(control.y) == 1.0
    alive, blinded = study.finding.split("blinded:")
    assert "harmfulness (" in alive
    assert "last_2 (" in blinded
    names = [probe.spec.name for probe in found.probes]
    assert [series.name for series in study.charts[1].series] == names
    assert [row[0] for row in study.tables[0].rows] == ["still refused", *names]


def test_where_nothing_is_refused_there_is_no_study(training, found):
    """Without refusal tokens the question does not arise; with tokens that start no refusal it is said why it is not
    put.
    """
    with pytest.raises(Skipped, match="starts its answers to harmful prompts as"):
        grafting(refusing_by(training), found)
    with pytest.raises(Skipped, match="of the selection prompts tried, 0 harmful ones are refused"):
        grafting(refusing_by(training, 7), found)
    with pytest.raises(Skipped, match="no probe in the artifact"):
        grafting(training, Fitted())
