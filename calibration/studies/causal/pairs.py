"""Contrast pairs: a harmful prompt that the model refuses and a harmless one that it answers, of as many tokens.

Equal length lets every position of one run stand in for the same position of the other.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.fitting.training_set import TrainingSet
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.batching import Batch, make_batch, plan_batches
from calibration.prompts.template import EncodedPrompts

_MOST_ASKED = 256
"""Prompts per class among which partners are sought."""


@dataclass(frozen=True, slots=True)
class PromptPairs:
    """N pairs: row i of one is the partner of row i of the other."""

    harmful: EncodedPrompts
    harmless: EncodedPrompts

    def __len__(self) -> int:
        return len(self.harmful.prompts)

    def batches(self, training: TrainingSet, size: int) -> Iterator[tuple[Batch, Batch]]:
        """Yield padded batches of at most `size` pairs, harmful ones first."""
        lengths, device = self.harmful.lengths.tolist(), training.chat.device
        for rows in plan_batches(lengths, max_tokens=4096, max_prompts=size):
            yield (make_batch(self.harmful.token_ids, rows, device), make_batch(self.harmless.token_ids, rows, device))


def contrast_pairs(training: TrainingSet, tokens: Sequence[int], most: int) -> PromptPairs:
    """Return at most `most` pairs of selection prompts, every prompt used once, spread over the lengths."""
    chosen = [_behaving(training, tokens, harmful=label) for label in (True, False)]
    shelves: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(chosen[1].lengths.tolist()):
        shelves[length].append(row)
    found = [(row, shelves[length].pop()) for row, length in enumerate(chosen[0].lengths.tolist()) if shelves[length]]
    spread = np.linspace(0, max(len(found) - 1, 0), min(most, len(found))).astype(int)
    kept = [found[index] for index in spread]
    return PromptPairs(chosen[0].subset([row for row, _ in kept]), chosen[1].subset([row for _, row in kept]))


def _behaving(training: TrainingSet, tokens: Sequence[int], *, harmful: bool) -> EncodedPrompts:
    """Return selection prompts that the model treats as labelled: a refusal that is not there cannot be located."""
    sample = training.prompts.subset(training.sample(training.select, harmful=harmful, most=_MOST_ASKED))
    if not sample.prompts:
        return sample
    metric = refusal_metric(first_token_log_probs(training.chat, sample), tokens)
    return sample.subset(np.flatnonzero((metric > 0) == harmful))
