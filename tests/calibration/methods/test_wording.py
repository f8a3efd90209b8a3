"""A probe of words alone reads the same whatever stands before them."""

import numpy as np
import pytest
from recorded import training_set
from tiny import make_prompts

from calibration.fitting.metrics import auroc
from calibration.methods.tokens.content import fit_content
from calibration.methods.tokens.content_streams import READOUT
from calibration.methods.tokens.token_level import score_rows
from calibration.prompts.template import read_template
from calibration.recording.places import content_positions
from probes.manifest import EMBEDDINGS


@pytest.fixture
def training(planted_chat, tmp_path):
    """The planted model's training set."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


@pytest.fixture
def probe(training):
    [_, probe] = fit_content(training).probes
    return probe


def test_a_request_is_scored_by_its_tokens_own_embeddings(training, probe):
    """An independent lookup in the model's table of embeddings gives each prompt's score: no block has a part in it."""
    assert probe.spec.layers == (EMBEDDINGS,)
    table = training.chat.model.get_input_embeddings().weight.detach().double().numpy()
    by_token = table @ probe.weight[0, 0].double().numpy() + probe.spec.bias
    template = read_template(training.chat.tokenizer)
    served = score_rows(training, [probe], np.arange(len(training.harmful)))[:, 0]
    for ids, score in zip(training.prompts.token_ids, served, strict=True):
        own = by_token[[ids[place] for place in content_positions(template, ids)]]
        width = min(READOUT.window, len(own))
        assert score == pytest.approx(np.convolve(own, np.ones(width) / width, "valid").max(), abs=1e-3)


def test_words_that_were_planted_are_found(training, probe):
    """Harmful prompts of the planted model have words that harmless ones have not."""
    served = score_rows(training, [probe], np.arange(len(training.harmful)))[:, 0]
    assert auroc(served[training.harmful], served[~training.harmful]) > 0.9
