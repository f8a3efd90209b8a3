"""What steering does beyond the first token: KL along the answer that the untouched model would have given."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from calibration.fitting.fitted import FittedSteering
from calibration.model.chat_model import ChatModel
from calibration.model.intervention import since, steered
from calibration.model.refusal_metric import mean_kl
from calibration.prompts.batching import Batch, iterate_batches
from calibration.prompts.template import EncodedPrompts
from probes.steering import moves_of

TOKENS = 8

Ids = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Continuations:
    """Prompts with the first tokens of the untouched model's greedy answers, and its log-probabilities of each."""

    chat: ChatModel
    token_ids: Ids
    log_probs: torch.Tensor
    """`[N, TOKENS, V]`, on the CPU: for small N."""

    @classmethod
    def of(cls, chat: ChatModel, prompts: EncodedPrompts) -> "Continuations":
        """Answer every prompt greedily for a few tokens."""
        ids = prompts.token_ids
        for _ in range(TOKENS):
            ids = _extended(chat, ids)
        return cls(chat, ids, _log_probs(chat, ids, None, 0.0))

    def kl(self, steering: FittedSteering, strength: float) -> float:
        """Return the mean KL `untouched || steered` over the answers' tokens, steered as the server steers, nats."""
        found = _log_probs(self.chat, self.token_ids, steering, strength)
        return mean_kl(self.log_probs.flatten(0, 1), found.flatten(0, 1))


def _extended(chat: ChatModel, ids: Ids) -> Ids:
    found: list[tuple[int, ...]] = list(ids)
    for batch in iterate_batches(ids, chat.device):
        for row, token in zip(batch.rows.tolist(), chat.last_logits(batch).argmax(dim=-1).tolist(), strict=True):
            found[row] = (*ids[row], token)
    return tuple(found)


def _log_probs(chat: ChatModel, ids: Ids, steering: FittedSteering | None, strength: float) -> torch.Tensor:
    batches, parts = list(iterate_batches(ids, chat.device)), []
    for batch in batches:
        ask = torch.stack([batch.from_end(offset) for offset in range(TOKENS, 0, -1)], dim=1)
        with _steering(chat, steering, strength, batch) if steering else nullcontext():
            parts.append(chat.logits_at(batch, ask).log_softmax(dim=-1).cpu())
    rows = np.concatenate([batch.rows for batch in batches])
    return torch.cat(parts)[np.argsort(rows)]


def _steering(chat: ChatModel, steering: FittedSteering, strength: float, batch: Batch) -> AbstractContextManager[None]:
    strengths = since(batch.from_end(TOKENS), strength, steering.spec.schedule)
    return steered(chat, moves_of(steering.spec, steering.tensors), strengths)
