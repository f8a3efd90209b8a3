"""How far a served score of the canary may be from the calibrated one."""

from dataclasses import replace

import pytest
import torch

from probes.artifact import BENIGN_SCORES
from probes.canary import canary_prompt, tolerances
from probes.manifest import Probe
from probes.template import Ending, Template


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
    """Of the score, of the probe's spread, or of 1: rounding moves large scores further, and small ones not by
    nothing.
    """
    assert tolerances(kept(score, spread, **model)) == {"harm": pytest.approx(allowed)}


def test_the_prompt_s_tokens_exist_in_every_vocabulary():
    """Calibration and every server make it of the vocabulary's size and the template alone."""
    assert canary_prompt(50_000, None) == canary_prompt(128_256, None) == [7 * place + 3 for place in range(24)]
    for vocabulary in (1, 2, 10, 100):
        assert set(canary_prompt(vocabulary, None)) <= set(range(vocabulary))


def test_the_prompt_ends_as_the_chat_template_does():
    """One turn, read whole: otherwise it would be off the template, and no rule would read it."""
    template = Template(tail=(500, 501, 502), frames=((500,), (7,)), special=(500, 7))
    prompt = canary_prompt(1000, template)
    assert template.ending(prompt) is Ending.TEMPLATE
    assert [(turn.start, turn.stop) for turn in template.turns(prompt)] == [(0, 27)]
