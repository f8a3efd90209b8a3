"""Candidates for the refusal direction, and their evaluator: what each one does (arXiv 2406.11717, section 2.3).

Every candidate gets all three numbers, those included that its depth rules out, so that a reviewer sees the choice and
not only the chosen.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from calibration.model.chat_model import ChatModel
from calibration.model.intervention import ablated, added, recentred
from calibration.model.refusal_metric import first_token_log_probs, mean_kl, refusal_metric
from calibration.prompts.batching import Batch
from calibration.prompts.template import EncodedPrompts

MAXIMUM_KL = 0.1
"""The paper's limit on what ablation may do to harmless prompts, nats."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A difference in means at one block and template position, with what was measured of it."""

    layer: int
    offset: int
    direction: npt.NDArray[np.float64]
    levels: npt.NDArray[np.float32]
    """Mean projection of harmless prompts on the unit direction at each template position `[P]`, last one first."""
    is_deep: bool
    """Whether it lies too near the output to be chosen, where adding it writes the refusal token itself."""
    strength: float = 1.0
    induce: float = -np.inf
    bypass: float = np.inf
    kl: float = np.inf
    is_affine: bool = False
    """Whether `bypass` and `kl` are those of affine ablation."""

    @property
    def qualifies(self) -> bool:
        """Return whether it may be chosen."""
        return not self.is_deep and self.induce > 0 and self.kl < MAXIMUM_KL

    def vector(self) -> torch.Tensor:
        """Return the direction as measured, float32 `[D]`."""
        return torch.from_numpy(self.direction.astype(np.float32))


@dataclass(frozen=True, slots=True)
class CandidateEvaluator:
    """The prompts by which candidates are judged, and how the untouched model answers them."""

    chat: ChatModel
    tokens: tuple[int, ...]
    harmful: EncodedPrompts
    harmless: EncodedPrompts
    harmless_log_probs: torch.Tensor

    def refusal(self, prompts: EncodedPrompts) -> float:
        """Return the mean refusal metric, under whatever intervention is in force."""
        return float(refusal_metric(first_token_log_probs(self.chat, prompts), self.tokens).mean())

    def ablate(self, candidate: Candidate) -> Candidate:
        """Return the candidate with `bypass` and `kl` of its ablation."""
        with ablated(self.chat, candidate.vector()):
            after = first_token_log_probs(self.chat, self.harmless)
            bypass = self.refusal(self.harmful)
        return replace(candidate, bypass=bypass, kl=mean_kl(self.harmless_log_probs, after))

    def ablate_affinely(self, candidate: Candidate) -> Candidate:
        """Return the candidate with `bypass` and `kl` of its affine ablation (arXiv 2411.09003)."""
        after = first_token_log_probs(self.chat, self.harmless, lambda batch: self._recentred(candidate, batch))
        harmful = first_token_log_probs(self.chat, self.harmful, lambda batch: self._recentred(candidate, batch))
        bypass = float(refusal_metric(harmful, self.tokens).mean())
        return replace(candidate, bypass=bypass, kl=mean_kl(self.harmless_log_probs, after), is_affine=True)

    def add(self, candidate: Candidate, strength: float) -> Candidate:
        """Return the candidate with `induce` at a strength: its vector added at every position of its block."""
        with added(self.chat, candidate.layer, strength * candidate.vector()):
            return replace(candidate, strength=strength, induce=self.refusal(self.harmless))

    def induced_as_served(self, candidate: Candidate, strength: float) -> float:
        """Return the mean metric when the vector is added where the first token is predicted, and no earlier."""
        vector = strength * candidate.vector()
        log_probs = first_token_log_probs(
            self.chat, self.harmless, lambda batch: added(self.chat, candidate.layer, vector, only=batch.from_end(0))
        )
        return float(refusal_metric(log_probs, self.tokens).mean())

    def _recentred(self, candidate: Candidate, batch: Batch) -> AbstractContextManager[None]:
        positions = torch.stack([batch.from_end(offset) for offset in range(len(candidate.levels))], dim=1)
        return recentred(self.chat, candidate.layer, candidate.vector(), positions, torch.from_numpy(candidate.levels))
