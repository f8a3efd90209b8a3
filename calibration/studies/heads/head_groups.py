"""Groups of heads, judged by what the model does without them: refusals of harmful prompts, and answers to harmless
ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calibration.fitting.metrics import rate
from calibration.model.attention_heads import Attention, Head, Removal, without_heads
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.studies.heads.ships import kl
from probes.manifest import Rate

REMOVALS: tuple[Removal, ...] = ("undifferentiated", "silenced")
NUM_DRAWS = 5
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class HeadGroupEffect:
    """What the model does without some heads."""

    metric: float
    """Mean refusal metric on harmful prompts."""
    refused: Rate
    """Harmful prompts that are more likely refused than not."""
    kl: float
    """Mean KL of the first token from the whole model's on harmless prompts, nats."""


@dataclass(frozen=True, slots=True)
class HeadGroupEvaluator:
    """The prompts that groups of heads are judged by."""

    chat: ChatModel
    attentions: tuple[Attention, ...]
    tokens: tuple[int, ...]
    harmful: EncodedPrompts
    harmless: EncodedPrompts
    whole: torch.Tensor
    """First-token log-probabilities of the whole model on `harmless`, `[N, V]`."""

    def judge(self, heads: Sequence[Head], removal: Removal) -> HeadGroupEffect:
        """Return what the model does without `heads`."""
        with without_heads(self.attentions, heads, removal):
            metric = refusal_metric(first_token_log_probs(self.chat, self.harmful), self.tokens)
            harmless = first_token_log_probs(self.chat, self.harmless)
        refused = rate(int((metric > 0).sum()), len(metric))
        return HeadGroupEffect(float(metric.mean()), refused, float(kl(self.whole, harmless).mean()))


def measure_growing(evaluator: HeadGroupEvaluator, group: Sequence[Head], removal: Removal) -> list[HeadGroupEffect]:
    """Return the outcomes of the first 0, 1, 2, … heads of `group`."""
    return [evaluator.judge(group[:size], removal) for size in range(len(group) + 1)]


def measure_random(
    evaluator: HeadGroupEvaluator, others: Sequence[Head], sizes: Sequence[int]
) -> dict[tuple[Removal, int], list[HeadGroupEffect]]:
    """Return what draws of `others` do, by removal and size of the draw; a larger draw begins with the smaller one."""
    rng = np.random.default_rng(_SEED)
    orders = [[others[row] for row in rng.permutation(len(others))] for _ in range(NUM_DRAWS)]
    wanted = [(removal, size) for removal in REMOVALS for size in sizes if size <= len(others)]
    return {
        (removal, size): [evaluator.judge(order[:size], removal) for order in orders]
        for removal, size in track(wanted, "taking out random heads")
    }
