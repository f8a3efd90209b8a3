"""The refusal readout says what the model is about to do, from one block and without its output head."""

import numpy as np
import pytest
import torch
from recorded import training_set
from tiny import make_model, make_prompts

from calibration.evaluation.unseen.contenders import recorded_scores
from calibration.methods.classifiers.refusal_readout import fit_refusal_readout
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric, refusal_metrics


def test_the_probe_follows_the_models_own_log_odds(planted_chat, tmp_path):
    """On prompts that it was not fitted on it explains nearly all of them, and says how much."""
    training = training_set(planted_chat, tmp_path, make_prompts(400, 0))
    [probe] = fit_refusal_readout(training).probes
    own = refusal_metrics(planted_chat, training.prompts, training.refusal_tokens)
    read = recorded_scores(training, probe)
    judged = training.select
    explained = 1 - np.square(own[judged] - read[judged]).sum() / np.square(own[judged] - own[judged].mean()).sum()
    assert explained > 0.9
    assert probe.spec.evidence["selection_r2"] == pytest.approx(explained, abs=1e-2)


def test_metrics_batch_by_batch_are_those_of_whole_distributions(planted_chat, tmp_path):
    """The same numbers, in the prompts' order."""
    training = training_set(planted_chat, tmp_path, make_prompts(120, 1))
    tokens = training.refusal_tokens
    whole = refusal_metric(first_token_log_probs(planted_chat, training.prompts), tokens)
    np.testing.assert_allclose(refusal_metrics(planted_chat, training.prompts, tokens), whole, rtol=1e-5)


def test_a_model_that_does_not_refuse_has_no_readout(tokenizer, tmp_path):
    """There is a note instead of a probe."""
    model = make_model(len(tokenizer), seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(0)
    found = fit_refusal_readout(training_set(ChatModel.wrap(model, tokenizer), tmp_path, make_prompts(240, 0)))
    assert not found.probes
    assert "no refusal readout" in found.notes[0]
