"""Scores are those of the serving arithmetic on the model's own hidden states."""

import numpy as np
import pytest
import torch
from tiny import HIDDEN, LAYERS, make_prompts, write_prompts

from calibration.batching import make_batch
from calibration.methods.fitted import FittedProbe
from calibration.pipeline import bank_of
from calibration.prompts import load_prompts
from calibration.refusal_metric import find_refusal_tokens, first_token_log_probs, mean_kl, refusal_metric
from calibration.request_scores import score_prompts
from calibration.template import encode_prompts
from probes.errors import CalibrationError
from probes.fingerprint import Fingerprint
from probes.manifest import Probe
from probes.readout import Readout

IDENTITY = Fingerprint(
    architecture="x",
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    config="",
    weights="",
    tokenizer="",
    chat_template="",
    dtype="float32",
)
READOUTS = [Readout(), Readout(offset=2), Readout(kind="mean"), Readout(kind="max"), Readout(kind="swim", window=4)]


@pytest.fixture
def encoded(tokenizer, tmp_path):
    """Forty prompts."""
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(40, 8))), 128)


def make_bank(readouts):
    """Random probes over two blocks, one for each readout."""
    generator = torch.Generator().manual_seed(0)
    probes = [
        FittedProbe(
            Probe(name=f"p{index}", method="random", layers=(0, 1), readout=readout, bias=0.5),
            torch.randn(2, HIDDEN, generator=generator),
        )
        for index, readout in enumerate(readouts)
    ]
    return bank_of(IDENTITY, probes)


@pytest.mark.parametrize("readouts", [READOUTS, READOUTS[:2]], ids=["all tokens", "last only"])
def test_scores_are_linear_readings_of_hugging_face_hidden_states(chat, encoded, readouts):
    """Each score equals the readout of `sum_l hidden_states[l + 1] . w_l + b`, computed one prompt at a time."""
    bank = make_bank(readouts)
    found = score_prompts(chat, bank, encoded).scores
    for row, ids in enumerate(encoded.token_ids[:15]):
        states = chat.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        tokens = sum(states[layer + 1][0] @ bank.matrices[layer] for layer in (0, 1)).numpy() + 0.5
        for column, readout in enumerate(readouts):
            wanted = readout.positions(len(ids))
            expected = readout.reduce(tokens[wanted.start : wanted.stop, column].astype(np.float32))
            assert found[row, column] == pytest.approx(expected, abs=1e-3)


def test_a_score_that_is_not_a_number_names_the_prompt(chat, encoded):
    """A model that overflows is reported, not scored."""
    chat.blocks[0].register_forward_hook(lambda _b, _a, output: output * float("nan"))
    with pytest.raises(CalibrationError, match=r"prompt p.jsonl:1: a score is NaN"):
        score_prompts(chat, make_bank(READOUTS), encoded)


def test_first_token_probabilities_are_in_file_order(chat, encoded):
    """Batching by length shuffles the prompts; the result does not."""
    found = first_token_log_probs(chat, encoded)
    for row in (0, 7, 39):
        alone = chat.last_logits(make_batch(encoded.token_ids, [row], chat.device)).log_softmax(-1)[0]
        torch.testing.assert_close(found[row], alone, atol=1e-4, rtol=1e-4)


def test_refusal_tokens_are_those_that_start_answers_to_harmful_prompts():
    """Token 1 starts most refusals, token 2 a few; token 0 starts answers to both; token 3 is too rare to count."""
    starts = [1] * 60 + [2] * 20 + [0] * 18 + [3] * 2 + [0] * 97 + [2] * 3
    log_probs = torch.nn.functional.one_hot(torch.tensor(starts), 5).float().log()
    harmful = np.arange(200) < 100
    assert find_refusal_tokens(log_probs, harmful) == (1, 2)
    assert find_refusal_tokens(log_probs[harmful].repeat(2, 1), harmful) == ()


def test_the_refusal_metric_is_the_log_odds_of_its_tokens():
    """`log P_R - log(1 - P_R)`, and finite at the ends."""
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    metric = refusal_metric(probabilities.log(), (0, 1))
    np.testing.assert_allclose(metric[:2], [np.log(3), np.log(0.25)], rtol=1e-6)
    assert np.isfinite(metric).all()


def test_kl_is_torchs():
    """The mean divergence agrees with torch.nn.functional.kl_div, and is zero of a distribution from itself."""
    before, after = torch.randn(2, 6, 9).log_softmax(-1)
    expected = torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
    assert mean_kl(before, after) == pytest.approx(float(expected), rel=1e-5)
    assert mean_kl(before, before) == 0.0
