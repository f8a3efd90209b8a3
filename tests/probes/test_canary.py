"""How far a served score of the canary may be from the calibrated one."""

from dataclasses import replace

import pytest
import torch

from probes.artifact import BENIGN_SCORES
from probes.canary import canary_prompt, tolerances
from probes.manifest import Probe


@pytest.fixture
def kept(make):
    """A maker of artifacts that keep a score of the canary, by a probe of so much spread, of such a model."""

    def kept(score, spread=0.0, **model):
        artifact = make(probes=(Probe(name="harm", method="m", layers=(0,)),))
        manifest = artifact.manifest.model_copy(
            update={
                "canary": {"harm": score},
                "fingerprint": artifact.manifest.fingerprint.model_copy(update={"dtype": "bfloat16"} | model),
            }
        )
        scores = {BENIGN_SCORES: torch.tensor([[-spread], [spread]])}
        return replace(artifact, manifest=manifest, tensors={**artifact.tensors, **scores})

    return kept


@pytest.mark.parametrize(
    ("score", "spread", "model", "allowed"),
    [
        (0.0, 0.0, {}, 0.15),
        (-10.0, 0.0, {}, 1.5),
        (2.0, 4.0, {}, 0.6),
        (2.0, 4.0, {"dtype": "float16"}, 0.6),
        (2.0, 4.0, {"dtype": "float32"}, 0.04),
        (2.0, 4.0, {"quantization": "awq"}, 1.8),
        (2.0, 4.0, {"lora": "digest"}, 1.2),
    ],
)
def test_a_tolerance_is_a_share_of_the_score_s_size(kept, score, spread, model, allowed):
    """Of the score, of the probe's spread, or of 1: rounding moves large scores further, and small ones not by nothing."""
    assert tolerances(kept(score, spread, **model)) == {"harm": pytest.approx(allowed)}


def test_the_prompt_s_tokens_exist_in_every_vocabulary():
    """Calibration and every server make it of the vocabulary's size alone."""
    assert canary_prompt(50_000) == canary_prompt(128_256) == [7 * place + 3 for place in range(24)]
    for vocabulary in (1, 2, 10, 100):
        assert set(canary_prompt(vocabulary)) <= set(range(vocabulary))
