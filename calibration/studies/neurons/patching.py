"""Dynamic activation patching: the partner answers with neurons of the aligned model in it (arXiv 2406.14144, section
4).

At every step the aligned model reads the text so far, the partner reads the same text with the chosen neurons
overwritten by what they were in the aligned model, and the partner gives the next token. What was written to earlier
positions does not change as the text grows, so both models' caches of keys and values hold, and a step costs one token.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from calibration.model.generation import Read, Reader, Tokens, plan_replies, reply
from calibration.model.neurons import Neurons, Numbers, overwritten, rewritten, watched
from calibration.model.refusal_metric import refusal_metric
from calibration.prompts.batching import Batch
from calibration.prompts.template import EncodedPrompts

Values = npt.NDArray[np.float64]

_Mean = Values | np.floating[Any]
"""F of one set of answers, or of each bootstrap sample."""
_NUM_BOOTSTRAP = 1000
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class PatchedAnswers:
    """PatchedAnswers to N prompts, in the prompts' order."""

    tokens: tuple[Tokens, ...]
    refusal: Values
    """The refusal metric of each first token `[N]`."""


def answer(neurons: Neurons, prompts: EncodedPrompts, refusal_tokens: Sequence[int], max_tokens: int) -> PatchedAnswers:
    """Return a model's own greedy answers."""
    plan = plan_replies(neurons.chat, prompts, max_tokens)
    return _collect([(batch, Reader(neurons.chat, batch).read) for batch in plan], neurons, refusal_tokens, max_tokens)


def answer_patched(
    aligned: Neurons,
    partner: Neurons,
    prompts: EncodedPrompts,
    chosen: Numbers,
    refusal_tokens: Sequence[int],
    max_tokens: int,
    *,
    with_weights: bool = False,
) -> PatchedAnswers:
    """Return the partner's greedy answers with the neurons `chosen` overwritten by the aligned model's, at all
    positions.

    Under `with_weights` they also write with the aligned model's output weights. The paper's pairs share them; a pair
    that was fully fine-tuned does not, and there a neuron's value alone is half of what it does.
    """
    plan = plan_replies(partner.chat, prompts, max_tokens, most_tokens=aligned.batch_tokens(len(chosen)))
    reads = [(batch, _patched(aligned, partner, batch, chosen, with_weights)) for batch in plan]
    return _collect(reads, partner, refusal_tokens, max_tokens)


def _patched(aligned: Neurons, partner: Neurons, batch: Batch, chosen: Numbers, with_weights: bool) -> Read:
    places = aligned.by_layer(chosen)
    source, target = Reader(aligned.chat, batch), Reader(partner.chat, batch)

    def read(tokens: torch.Tensor) -> torch.Tensor:
        with watched(aligned, list(places), lambda layer, values: values[..., places[layer]]) as values:
            source.read(tokens)
        with (
            overwritten(partner, places, values),
            rewritten(partner, aligned, places, values) if with_weights else nullcontext(),
        ):
            return target.read(tokens)

    return read


def _collect(
    reads: Sequence[tuple[Batch, Read]], neurons: Neurons, refusal_tokens: Sequence[int], max_tokens: int
) -> PatchedAnswers:
    count = sum(len(batch.rows) for batch, _ in reads)
    tokens: list[Tokens] = [()] * count
    refusal = np.empty(count)
    for batch, read in reads:
        given = reply(read, neurons.chat, batch, max_tokens)
        refusal[batch.rows] = refusal_metric(given.first_logits.log_softmax(dim=-1).cpu(), refusal_tokens)
        for row, each in zip(batch.rows.tolist(), given.tokens, strict=True):
            tokens[row] = each
    return PatchedAnswers(tuple(tokens), refusal)


@dataclass(frozen=True, slots=True)
class RefusalOpenings:
    """How a model's own refusals begin: no table of phrases, but what it was seen to say."""

    known: frozenset[Tokens]
    length: int

    @classmethod
    def learn(
        cls, to_harmful: Sequence[Tokens], to_harmless: Sequence[Tokens], refusal_tokens: Sequence[int], length: int = 3
    ) -> "RefusalOpenings":
        """Learn from answers: openings that start with a refusal token and are commoner where the prompt was
        harmful.
        """
        on_harmful, on_harmless = (
            [tokens[:length] for tokens in side if tokens[:1] and tokens[0] in refusal_tokens]
            for side in (to_harmful, to_harmless)
        )
        known = {
            each
            for each in on_harmful
            if on_harmful.count(each) / len(to_harmful) > on_harmless.count(each) / max(len(to_harmless), 1)
        }
        return cls(frozenset(known), length)

    def refused(self, answers: Sequence[Tokens]) -> Values:
        """Return 1 for each answer that opens like one of the refusals, else 0: `[N]`."""
        return np.array([float(tokens[: self.length] in self.known) for tokens in answers])


@dataclass(frozen=True, slots=True)
class Effect:
    """A causal effect with its 95 % interval: 0 is the partner as it is, 1 the aligned model."""

    value: float
    low: float
    high: float


def causal_effect(patched: Values, partner: Values, aligned: Values) -> Effect:
    """Return `C = (F(patched) - F(partner)) / (F(aligned) - F(partner))`, F the mean over prompts.

    `patched` is `[R, N]`, one row a draw of neurons; the others are `[N]`, of the same prompts. The interval is a
    bootstrap's over prompts and draws.
    """
    rng = np.random.default_rng(_SEED)
    num_draws, num_prompts = patched.shape
    # How often each draw and each prompt is in a bootstrap sample, as shares.
    draws, prompts = (
        rng.multinomial(count, np.full(count, 1 / count), size=_NUM_BOOTSTRAP) / count
        for count in (num_draws, num_prompts)
    )
    means = np.einsum("br,rn,bn->b", draws, patched, prompts, optimize=True), prompts @ partner, prompts @ aligned
    low, high = np.nanquantile(_effect(*means), [0.025, 0.975])
    value = float(_effect(patched.mean(), partner.mean(), aligned.mean()))
    return Effect(value, float(low), float(high))


def _effect(patched: _Mean, partner: _Mean, aligned: _Mean) -> Values:
    gap = np.asarray(aligned - partner)
    return np.asarray(np.divide(patched - partner, gap, out=np.full(gap.shape, np.nan), where=gap != 0))
