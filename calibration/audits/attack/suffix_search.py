"""Greedy coordinate gradient (GCG, arXiv 2307.15043): words that mean nothing, put after a request, chosen token by
token.

In each step the gradient at the suffix's embeddings proposes tokens, some swaps are drawn from the proposals, all are
tried, and the best is kept if it lowers the loss. Only tokens that begin a word and encode as themselves are used, so
that the suffix as text is the suffix as tokens: it could be typed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from calibration.audits.attack.objective import Objective
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_output
from calibration.model.refusal_gradient import differentiable
from calibration.prompts.batching import Batch, make_batch
from calibration.prompts.progress import track
from probes.errors import ModelError

_PROPOSALS = 64
"""Tokens per place from which swaps are drawn."""
_SEED = 20_260

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard an attacker tries."""

    length: int = 10
    """Tokens of the suffix."""
    steps: int = 40
    swaps: int = 24
    """Swaps tried per prompt and step."""


class SuffixSearch:
    """A search of suffixes for N prompts at once, each its own."""

    def __init__(self, chat: ChatModel, token_ids: Sequence[Ids], tail: int, effort: Effort) -> None:
        """Prepare; `tail` tokens of the chat template stand after the suffix."""
        self._chat, self._token_ids, self._tail, self._effort = chat, token_ids, tail, effort
        self._allowed = typeable_tokens(chat)
        self._rng = np.random.default_rng(_SEED)

    def random(self) -> list[Ids]:
        """Return suffixes that nobody chose: where the search starts, and what it is compared with."""
        rng = np.random.default_rng(_SEED)
        return [tuple(rng.choice(self._allowed, self._effort.length).tolist()) for _ in self._token_ids]

    def run(self, objective: Objective) -> list[Ids]:
        """Return each prompt's best suffix. A prompt whose loss is zero is left alone from then on."""
        suffixes, losses = self.random(), np.full(len(self._token_ids), np.inf)
        self._rng = np.random.default_rng(_SEED)
        for _ in track(range(self._effort.steps), f"attacking: {objective.name}"):
            for row in np.flatnonzero(losses > 0):
                suffixes[row], losses[row] = self._step(int(row), suffixes[row], objective)
        return suffixes

    def _step(self, row: int, suffix: Ids, objective: Objective) -> tuple[Ids, float]:
        tried = [suffix, *self._swaps(suffix, self._proposals(row, suffix, objective))]
        with torch.inference_mode():
            losses = objective.loss(self._chat, self._batch(row, tried))
        best = int(losses.argmin())
        return tried[best], float(losses[best])

    def _proposals(self, row: int, suffix: Ids, objective: Objective) -> torch.Tensor:
        """Return token ids `[length, proposals]` whose embeddings lie furthest down the gradient at each place."""
        batch = self._batch(row, [suffix])
        kept: list[torch.Tensor] = []
        model: Any = self._chat.model
        table = model.get_input_embeddings()
        # Behind the hook of `differentiable`, so that it sees the embeddings at which the graph begins.
        with differentiable(self._chat), on_output(table, kept.append):
            loss = objective.loss(self._chat, batch).sum()
        if not loss.requires_grad or not loss.item():
            return self._allowed_tensor().expand(len(suffix), -1)
        (gradient,) = torch.autograd.grad(loss, kept[:1])
        end = len(self._token_ids[row]) - self._tail
        scores = -(gradient[0, end : end + len(suffix)].float() @ table.weight.float().T)[:, self._allowed]
        best = scores.topk(min(_PROPOSALS, len(self._allowed)), dim=1).indices.cpu()
        return self._allowed_tensor()[best]

    def _allowed_tensor(self) -> torch.Tensor:
        return torch.from_numpy(self._allowed)

    def _swaps(self, suffix: Ids, proposals: torch.Tensor) -> list[Ids]:
        swapped = []
        for _ in range(self._effort.swaps):
            place = int(self._rng.integers(len(suffix)))
            token = int(proposals[place, int(self._rng.integers(proposals.shape[1]))])
            swapped.append((*suffix[:place], token, *suffix[place + 1 :]))
        return swapped

    def _batch(self, row: int, suffixes: Sequence[Ids]) -> Batch:
        ids = tuple(self._token_ids[row])
        cut = len(ids) - self._tail
        return make_batch([ids[:cut] + each + ids[cut:] for each in suffixes], range(len(suffixes)), self._chat.device)


def typeable_tokens(chat: ChatModel) -> Any:
    """Return the ids `[A]` of tokens that begin a word and encode as themselves.

    Raises `ModelError` where there are few.
    """
    tokenizer = chat.tokenizer
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    plain = [
        token for token, text in enumerate(texts) if _begins_a_word(text) and token not in tokenizer.all_special_ids
    ]
    again = tokenizer([texts[token] for token in plain], add_special_tokens=False).input_ids
    found = np.array([token for token, ids in zip(plain, again, strict=True) if list(ids) == [token]], dtype=np.int64)
    if len(found) < 2:
        raise ModelError(
            "no tokens that begin a word by a space and encode as themselves",
            field="tokenizer",
            remedy="attack a model with a byte-level tokenizer",
        )
    return found


def _begins_a_word(text: str) -> bool:
    return len(text) > 1 and text[0] == " " and text[1:].isalnum() and text.isascii()
