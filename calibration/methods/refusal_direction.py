"""The refusal direction: the one direction that mediates whether the model refuses (arXiv 2406.11717).

Candidates are differences in means at every template position after the instruction and every block. They are judged by
what they do: refusals vanish when the direction is ablated (`bypass`), appear when it is added (`induce`), and harmless
prompts do not notice the ablation (`kl`). Where no candidate stands linear ablation, affine ablation judges (arXiv
2411.09003): the component is set to the harmless mean instead of zero.

Layers are counted at `resid_post`, so block l here is the paper's input of block l + 1.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from calibration.batching import Batch
from calibration.intervention import ablated, added, recentred
from calibration.methods.directions import difference_in_means, direction_probe
from calibration.methods.fitted import Fitted, FittedSteering
from calibration.methods.training import Rows, TrainingSet
from calibration.model import ChatModel
from calibration.progress import track
from calibration.prompts import MINIMUM_PER_CLASS
from calibration.refusal_metric import find_refusal_tokens, first_token_log_probs, mean_kl, refusal_metric
from calibration.template import EncodedPrompts
from probes.manifest import SteeringVector

_METHOD = "difference in means, chosen by ablation and addition"
_MOST_CONTRAST = 128
_MOST_JUDGED = 32
_MAXIMUM_KL = 0.1
_DEEPEST = 0.8
"""The paper's sample sizes and limits: 128 prompts a class, 32 to choose by, KL below 0.1 nats, depth below 0.8 L."""
_STRENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""The paper adds the vector once. A model that refuses by a narrow margin needs more, so more is tried where once does
not induce; the strength that did is in the evidence."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    layer: int
    offset: int
    direction: npt.NDArray[np.float64]
    levels: npt.NDArray[np.float32]
    """Mean projection of harmless prompts on the unit direction at each template position `[P]`, last one first."""
    strength: float = 1.0
    induce: float = -np.inf
    bypass: float = np.inf
    kl: float = np.inf
    is_affine: bool = False
    """Whether `bypass` and `kl` are those of affine ablation."""

    @property
    def qualifies(self) -> bool:
        return self.induce > 0 and self.kl < _MAXIMUM_KL

    def vector(self) -> torch.Tensor:
        return torch.from_numpy(self.direction.astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Jury:
    """The prompts by which candidates are judged, and how the untouched model answers them."""

    chat: ChatModel
    tokens: tuple[int, ...]
    harmful: EncodedPrompts
    harmless: EncodedPrompts
    harmless_log_probs: torch.Tensor

    def refusal(self, prompts: EncodedPrompts) -> float:
        """Return the mean refusal metric, under whatever intervention is in force."""
        return float(refusal_metric(first_token_log_probs(self.chat, prompts), self.tokens).mean())

    def judge(self, candidate: _Candidate, strength: float) -> _Candidate:
        vector = candidate.vector()
        with added(self.chat, candidate.layer, strength * vector):
            induce = self.refusal(self.harmless)
        judged = replace(candidate, strength=strength, induce=induce)
        if induce <= 0:
            return judged
        with ablated(self.chat, vector):
            after = first_token_log_probs(self.chat, self.harmless)
            bypass = self.refusal(self.harmful)
        linear = replace(judged, bypass=bypass, kl=mean_kl(self.harmless_log_probs, after))
        return linear if linear.qualifies else self._judge_affine(judged)

    def _judge_affine(self, judged: _Candidate) -> _Candidate:
        after = first_token_log_probs(self.chat, self.harmless, lambda batch: self._recentred(judged, batch))
        harmful = first_token_log_probs(self.chat, self.harmful, lambda batch: self._recentred(judged, batch))
        bypass = float(refusal_metric(harmful, self.tokens).mean())
        return replace(judged, bypass=bypass, kl=mean_kl(self.harmless_log_probs, after), is_affine=True)

    def _recentred(self, judged: _Candidate, batch: Batch) -> AbstractContextManager[None]:
        positions = torch.stack([batch.from_end(offset) for offset in range(len(judged.levels))], dim=1)
        return recentred(self.chat, judged.layer, judged.vector(), positions, torch.from_numpy(judged.levels))

    def induced_as_served(self, candidate: _Candidate, strength: float) -> float:
        """Return the mean metric when the vector is added where the first token is predicted, and no earlier."""
        vector = strength * candidate.vector()
        log_probs = first_token_log_probs(
            self.chat, self.harmless, lambda batch: added(self.chat, candidate.layer, vector, only=batch.from_end(0))
        )
        return float(refusal_metric(log_probs, self.tokens).mean())


def fit_refusal_direction(training: TrainingSet) -> Fitted:
    """Return probe and steering vector `refusal`, or notes that say why there is none."""
    rows = _contrast_rows(training)
    contrast = training.prompts.subset(rows)
    log_probs = first_token_log_probs(training.chat, contrast)
    tokens = find_refusal_tokens(log_probs, contrast.harmful)
    if not tokens:
        return Fitted(
            notes=("no refusal direction: the model starts its answers to harmful prompts as it starts all others",)
        )
    behaving = (refusal_metric(log_probs, tokens) > 0) == contrast.harmful
    if min((behaving & contrast.harmful).sum(), (behaving & ~contrast.harmful).sum()) < MINIMUM_PER_CLASS:
        return Fitted(
            notes=(
                f"no refusal direction: the model treats only {int(behaving.sum())} of {len(rows)} prompts as labelled",
            ),
            refusal_tokens=tokens,
        )
    return _choose(training, rows[behaving], _summon(training, tokens))


def _contrast_rows(training: TrainingSet) -> Rows:
    sides = [training.sample(training.fit, harmful=label, most=_MOST_CONTRAST) for label in (False, True)]
    return np.concatenate(sides)


def _summon(training: TrainingSet, tokens: tuple[int, ...]) -> _Jury:
    harmful, harmless = (_behaving(training, tokens, harmful=label) for label in (True, False))
    return _Jury(training.chat, tokens, harmful, harmless, first_token_log_probs(training.chat, harmless))


def _behaving(training: TrainingSet, tokens: tuple[int, ...], *, harmful: bool) -> EncodedPrompts:
    """Return selection prompts that the model treats as labelled, as the paper does; all where it treats none so."""
    sample = training.prompts.subset(training.sample(training.select, harmful=harmful, most=_MOST_CONTRAST))
    metric = refusal_metric(first_token_log_probs(training.chat, sample), tokens)
    rows = np.flatnonzero((metric > 0) == harmful)
    return sample.subset((rows if len(rows) else np.arange(len(metric)))[:_MOST_JUDGED])


def _choose(training: TrainingSet, rows: Rows, jury: _Jury) -> Fitted:
    candidates = list(_candidates(training, rows))
    strongest = -np.inf
    for strength in _STRENGTHS:
        title = f"judging directions at strength {strength:g}"
        judged = [jury.judge(each, strength) for each in track(candidates, title)]
        for is_affine in (False, True):
            qualified = [each for each in judged if each.qualifies and each.is_affine == is_affine]
            if qualified:
                return _describe(training, rows, jury, min(qualified, key=lambda candidate: candidate.bypass))
        strongest = max(strongest, *(candidate.induce for candidate in judged))
    return Fitted(
        notes=(
            f"no refusal direction: none of {len(candidates)} candidates induces refusals (best {strongest:.2f}) "
            f"while its ablation changes harmless answers by less than {_MAXIMUM_KL} nats",
        ),
        refusal_tokens=jury.tokens,
    )


def _candidates(training: TrainingSet, rows: Rows) -> Iterator[_Candidate]:
    offsets, harmful = range(training.instruction_offset), training.harmful[rows]
    for layer in range(training.chat.num_layers):
        if layer + 1 < _DEEPEST * training.chat.num_layers:
            features = [training.features(layer, offset, rows) for offset in offsets]
            means = np.stack([each[~harmful].mean(axis=0, dtype=np.float64) for each in features])
            for offset in offsets:
                direction = difference_in_means(features[offset], harmful)
                levels = means @ direction / np.linalg.norm(direction)
                yield _Candidate(layer, offset, direction, levels.astype(np.float32))


def _describe(training: TrainingSet, rows: Rows, jury: _Jury, best: _Candidate) -> Fitted:
    vector = best.vector()
    evidence = _evidence(jury, best)
    probe = direction_probe(
        "refusal",
        _METHOD,
        best.direction,
        training.project(best.layer, best.offset, best.direction / np.linalg.norm(best.direction))[rows],
        training.harmful[rows],
        layer=best.layer,
        offset=best.offset,
        evidence=evidence,
    )
    steering = SteeringVector(
        name="refusal",
        method=_METHOD,
        layers=(best.layer,),
        norm=float(vector.norm()),
        cos_refusal=1.0,
        evidence=evidence,
    )
    return Fitted((probe,), (FittedSteering(steering, vector.unsqueeze(0)),), refusal_tokens=jury.tokens)


def _evidence(jury: _Jury, best: _Candidate) -> dict[str, float]:
    """Return what the direction does; `served_strength` is the least strength that induces refusal as served, if any does."""
    served = {strength: jury.induced_as_served(best, strength) for strength in _STRENGTHS}
    enough = [strength for strength, metric in served.items() if metric > 0]
    return {
        "induce": best.induce,
        "strength": best.strength,
        "bypass": best.bypass,
        "kl": best.kl,
        "affine": float(best.is_affine),
        "baseline_harmful": jury.refusal(jury.harmful),
        "baseline_harmless": jury.refusal(jury.harmless),
        "induce_served": served[best.strength],
    } | ({"served_strength": enough[0]} if enough else {})
