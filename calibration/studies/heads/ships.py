"""Ships and Sahara: which attention heads carry the model's safety (arXiv 2410.13708).

`Ships(q, h) = KL(p(q) || p(q without h))` on the first token of the answer to a harmful prompt q. Over a set of
prompts, with M `[D, N]` their last hidden states: the sum of the principal angles between the leading left singular
directions of M with h and without it. Sahara adds, one by one, the head with the largest angle given those that are out
already.

The paper leaves open which way M is stacked; here its columns are prompts, so that a singular direction is one of the
hidden space. Stacked the other way, a head that moves all prompts alike would move no direction.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from calibration.model.attention_heads import Attention, Head, Removal, without_heads
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import after_call
from calibration.prompts.batching import iterate_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts

GROUP = 5
"""Most heads in a group; the paper finds three best."""
_RANK = 1
"""Leading directions that are compared, as in the paper's runs."""
_MOST_LATER = 64
"""Heads that may join the group after the first: those with the largest scores alone. The paper tries all."""


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """How a model is about to answer N prompts."""

    log_probs: torch.Tensor
    """Of the first token, float32 `[N, V]`."""
    states: torch.Tensor
    """What the output head reads at the prompt's last position, float32 `[N, D]`."""


@dataclass(frozen=True, slots=True)
class HeadEffect:
    """What taking out a head, beside those out already, does to N harmful prompts."""

    head: Head
    ships: npt.NDArray[np.float64]
    """KL of each prompt's first token, nats `[N]`."""
    shift: float
    """Sum of principal angles, degrees."""


@dataclass(frozen=True, slots=True)
class HeadScores:
    """The heads of a model and the prompts by which they are scored."""

    chat: ChatModel
    attentions: tuple[Attention, ...]
    prompts: EncodedPrompts

    def effects(
        self,
        heads: Sequence[Head],
        *,
        out: Sequence[Head] = (),
        removal: Removal = "undifferentiated",
        title: str = "scoring heads",
    ) -> list[HeadEffect]:
        """Return each head's effect, with `out` taken out as well; both against the whole model."""
        whole = read_answers(self.chat, self.prompts)
        effects = []
        for head in track(heads, title):
            with without_heads(self.attentions, [*out, head], removal):
                without = read_answers(self.chat, self.prompts)
            effects.append(
                HeadEffect(head, kl(whole.log_probs, without.log_probs), shift(whole.states, without.states))
            )
        return effects

    def sahara(self, alone: Sequence[HeadEffect], *, size: int = GROUP) -> list[HeadEffect]:
        """Return the group, in the order in which it grew; `alone` are all heads' effects by themselves."""
        ranked = sorted(alone, key=_shift, reverse=True)
        group = ranked[:1]
        while len(group) < min(size, len(alone)):
            out = [each.head for each in group]
            left = [each.head for each in ranked[:_MOST_LATER] if each.head not in out]
            title = f"the group's head {len(group) + 1}"
            group.append(max(self.effects(left, out=out, title=title), key=_shift))
        return group


def _shift(effect: HeadEffect) -> float:
    return effect.shift


def read_answers(chat: ChatModel, prompts: EncodedPrompts) -> FirstTokens:
    """Read both in one pass of every prompt, under whatever intervention is in force. For small N: it is all held."""
    batches = list(iterate_batches(prompts.token_ids, chat.device))
    with _head_inputs(chat) as states:
        log_probs = [chat.last_logits(batch).log_softmax(dim=-1).cpu() for batch in batches]
    order = np.argsort(np.concatenate([batch.rows for batch in batches]))
    return FirstTokens(torch.cat(log_probs)[order], torch.cat(states)[order])


@contextmanager
def _head_inputs(chat: ChatModel) -> Iterator[list[torch.Tensor]]:
    states: list[torch.Tensor] = []

    # After the head has run: by then its input has been narrowed to each prompt's last position.
    def keep(_head: Any, args: tuple[torch.Tensor, ...], _output: Any) -> None:
        states.append(args[0][:, 0].float().cpu())

    with after_call(chat.head, keep):
        yield states


def kl(before: torch.Tensor, after: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the KL divergence `before || after` of each row of log-probabilities `[N, V]`, nats `[N]`."""
    exact = before.double()
    return np.asarray((exact.exp() * (exact - after.double())).sum(dim=-1).numpy())


def shift(before: torch.Tensor, after: torch.Tensor, rank: int = _RANK) -> float:
    """Return the sum of the principal angles between the leading `rank` directions of states `[N, D]`, in degrees."""
    bases = [torch.linalg.svd(states.double().T, full_matrices=False).U[:, :rank] for states in (before, after)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    return float(torch.rad2deg(torch.arccos(cosines)).sum())
