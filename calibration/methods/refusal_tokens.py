"""The tokens that start the model's refusals, learned from training prompts by whatever method needs them."""

import numpy as np

from calibration.methods.training import TrainingSet
from calibration.refusal_metric import find_refusal_tokens, first_token_log_probs

_MOST_ASKED = 128
"""Prompts per class, as for the refusal direction."""


def refusal_tokens_of(training: TrainingSet) -> tuple[int, ...]:
    """Return the tokens, from fit prompts; empty where the model does not refuse."""
    sides = [training.sample(training.fit, harmful=label, most=_MOST_ASKED) for label in (False, True)]
    asked = training.prompts.subset(np.sort(np.concatenate(sides)))
    return find_refusal_tokens(first_token_log_probs(training.chat, asked), asked.harmful)
