"""The tiny models and prompts of `tiny.py`, as fixtures."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from brief import BRIEF
from tiny import make_model, make_prompts, make_tokenizer, plant_refusal, write_prompts

from calibration.model.chat_model import ChatModel
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.settings import Settings
from calibration.prompts.splits import read_splits


@dataclass(frozen=True)
class Planted:
    """A saved model and the direction that makes it refuse."""

    folder: Path
    direction: torch.Tensor


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny tokenizer."""
    return make_tokenizer()


@pytest.fixture
def chat(tokenizer):
    """A random tiny chat model."""
    return ChatModel.wrap(make_model(len(tokenizer)), tokenizer)


@pytest.fixture(scope="session")
def planted(tokenizer, tmp_path_factory):
    """The planted model, saved as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("planted")
    model = make_model(len(tokenizer), seed=1)
    direction = plant_refusal(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Planted(folder, direction)


@pytest.fixture
def planted_chat(planted):
    """The planted model, loaded."""
    return ChatModel.load(planted.folder)


@pytest.fixture(scope="session")
def splits(tmp_path_factory):
    """Train, validation and test files for the planted model."""
    folder = tmp_path_factory.mktemp("prompts")
    sizes = {"train": (240, 0.5), "validation": (420, 0.2), "test": (400, 0.2)}
    return {
        split: write_prompts(folder / f"{split}.jsonl", make_prompts(count, seed, harmful_share=share))
        for seed, (split, (count, share)) in enumerate(sizes.items())
    }


@pytest.fixture(scope="session")
def calibrated(planted, splits, tmp_path_factory):
    """A finished calibration by everything there is, and its folder."""
    out = tmp_path_factory.mktemp("out") / "artifact"
    return calibrate(planted.folder, read_splits(**splits), out, Settings(full=True)), out


@pytest.fixture(scope="session")
def brief(planted, splits, tmp_path_factory):
    """A finished calibration by `BRIEF`, and its folder."""
    out = tmp_path_factory.mktemp("brief") / "artifact"
    return calibrate(planted.folder, read_splits(**splits), out, BRIEF), out
