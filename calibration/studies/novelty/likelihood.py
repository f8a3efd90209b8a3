"""How likely a prompt's own words are to a model, and to its partner.

The likelihood ratio of a model and a background model tells unusual content from unusual length or style, which both
find unlikely (arXiv 1906.02845). The chat template's tokens are no part of it: a base model has hardly seen them.
"""

import numpy as np
import numpy.typing as npt
import torch

from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import Batch, iterate_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts

_BATCH_TOKENS = 4096
_HELD_BYTES = 1 << 30
"""Of logits, three times over: as computed, as probabilities, and in between."""


def mean_log_probs(chat: ChatModel, prompts: EncodedPrompts, tail: int, title: str) -> npt.NDArray[np.float64]:
    """Return each prompt's mean log-probability per token, nats, float64 `[N]`; 0 where nothing is predicted.

    Left out are the tokens that all prompts begin with, and the last `tail`.
    """
    head = _shared_start(prompts)
    vocabulary = len(chat.tokenizer)
    most = max(min(_BATCH_TOKENS, _HELD_BYTES // (3 * 4 * vocabulary)), 1)
    result = np.zeros(len(prompts.prompts))
    batches = list(iterate_batches(prompts.token_ids, chat.device, max_tokens=most))
    for batch in track(batches, title):
        if batch.input_ids.shape[1] > 1:
            result[batch.rows] = _means(chat, batch, head, tail)
    return result


def _means(chat: ChatModel, batch: Batch, head: int, tail: int) -> npt.NDArray[np.float64]:
    targets = batch.input_ids[:, 1:]
    positions = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    found = chat.logits_at(batch, positions).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    place, lengths = positions + 1, batch.lengths[:, None]
    # A prompt that is nothing but template counts one token all the same.
    end = (lengths - tail).clamp(min=2)
    counted = (place >= (end - 1).clamp(max=head)) & (place < end) & (place < lengths)
    total = torch.where(counted, found, 0.0).double().sum(1)
    return np.asarray((total / counted.sum(1).clamp(min=1)).cpu().numpy())


def _shared_start(prompts: EncodedPrompts) -> int:
    """Return how many tokens all prompts begin with: the template's."""
    first, last = min(prompts.token_ids), max(prompts.token_ids)
    return next((index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
