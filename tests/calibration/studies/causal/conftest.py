"""The planted model's training set, once for all causal checks."""

import pytest
from recorded import training_set
from tiny import make_prompts

from calibration.fitting.fitted import merge
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.chat_model import ChatModel


@pytest.fixture(scope="session")
def training(planted, tmp_path_factory):
    """Recorded prompts of the planted model."""
    return training_set(ChatModel.load(planted.folder), tmp_path_factory.mktemp("causal"), make_prompts(240, 0))


@pytest.fixture(scope="session")
def found(training):
    """What the direction methods find in it."""
    return merge([fit_refusal_direction(training), fit_harmfulness_direction(training)])
