"""Concept sensitivity (TCAV, arXiv 1711.11279): does the model's refusal respond to what a probe reads?

The directional derivative of the refusal metric along a probe's direction, where it reads. TCAV's score is the share of
prompts on which it is positive. Random directions are the yardstick, two-sided: where gradients of all prompts point
the same way, any direction has a share near 0 or 1, so the mean derivative is tested too.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.metrics import rate
from calibration.fitting.study import Skipped, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.model.float32 import in_float32, too_large
from calibration.model.refusal_gradient import stream_gradients
from calibration.prompts.batching import iterate_batches
from calibration.prompts.progress import track
from calibration.studies.causal.directions import Direction, required_directions

_MOST = 64
_NUM_RANDOM = 200
_LEVEL = 0.05
_SEED = 20_260
_NAME, _TITLE = "concept_sensitivity", "Does refusal respond to what the probes read?"
MOVED = ("where it reads", "every position")


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What moving along one direction does to refusals, to first order."""

    name: str
    moved: str
    """Where the stream is moved: only where the probe reads, or at every position of its blocks."""
    derivatives: npt.NDArray[np.float64]
    """`[N]`: refusal log-odds per unit of length."""
    random: npt.NDArray[np.float64]
    """`[R, N]`: the same along random directions, read in the same places."""

    @property
    def share(self) -> float:
        """TCAV's score: the share of prompts with a positive derivative."""
        return float((self.derivatives > 0).mean())

    @property
    def p_share(self) -> float:
        """Two-sided p-value of the share's distance from one half."""
        return _p_value(abs(self.share - 0.5), np.abs((self.random > 0).mean(axis=1) - 0.5))

    @property
    def p_mean(self) -> float:
        """Two-sided p-value of the mean derivative."""
        return _p_value(abs(float(self.derivatives.mean())), np.abs(self.random.mean(axis=1)))


def sensitivity_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:
    """Return the study of every residual probe. Raises `Skipped` without one, and where the model does not refuse."""
    tokens, wanted = training.require_refusals(), required_directions(found, training.chat.hidden_size)
    if reason := too_large(training.chat.model):
        raise Skipped(reason)
    return (_study(sensitivities(training, wanted, tokens)),)


def sensitivities(
    training: TrainingSet, wanted: list[Direction], tokens: tuple[int, ...], num_random: int = _NUM_RANDOM
) -> list[Sensitivity]:
    """Return each direction's sensitivity on selection prompts of both classes, in float32."""
    chat = training.chat
    rows = np.concatenate([training.sample(training.select, harmful=label, most=_MOST) for label in (False, True)])
    layers = sorted({layer for each in wanted for layer in each.units})
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.nn.functional.normalize(torch.randn(num_random, chat.hidden_size, generator=generator), dim=1)
    parts: dict[tuple[str, str], list[torch.Tensor]] = {(each.name, moved): [] for each in wanted for moved in MOVED}
    with in_float32(chat.model):
        batches = list(iterate_batches(training.prompts.subset(rows).token_ids, chat.device, max_prompts=32))
        for batch in track(batches, "differentiating refusal"):
            gradients = stream_gradients(chat, batch, layers, tokens)
            for each in wanted:
                for moved, positions in zip(MOVED, (each.positions(batch), batch.mask.bool()), strict=True):
                    read = {layer: (gradients[layer] * positions.unsqueeze(-1)).sum(dim=1) for layer in each.units}
                    parts[each.name, moved].append(_along(read, each, draws.to(chat.device)).cpu())
    return [
        Sensitivity(name, moved, columns[:, 0], columns[:, 1:].T)
        for (name, moved), chunks in parts.items()
        for columns in (torch.cat(chunks).double().numpy(),)
    ]


def _along(read: dict[int, torch.Tensor], each: Direction, draws: torch.Tensor) -> torch.Tensor:
    """Return derivatives `[B, 1 + R]` along a direction and `draws` `[R, D]`; `read` is the gradient `[B, D]` by
    block.
    """
    own = torch.stack([read[layer] @ unit.to(draws.device) for layer, unit in each.units.items()]).sum(dim=0)
    return torch.cat([own.unsqueeze(1), torch.stack(list(read.values())).sum(dim=0) @ draws.T], dim=1)


def _p_value(observed: float, drawn: npt.NDArray[np.float64]) -> float:
    return float((1 + (drawn >= observed).sum()) / (1 + len(drawn)))


def _study(measured: list[Sensitivity]) -> StudyResult:
    count, draws = len(measured[0].derivatives), len(measured[0].random)
    said = "; ".join(f"moved {moved}: {_names(measured, moved)}" for moved in MOVED)
    still = sorted({each.name for each in measured if not each.derivatives.any()})
    dead = f" Nothing read by {', '.join(still)} there can reach the first token." if still else ""
    return StudyResult(
        name=_NAME,
        title=_TITLE,
        finding=(
            f"Refusal responds more than to random directions along these probes, {said}.{dead} Derivatives of the "
            f"refusal log-odds on {count} selection prompts, against {draws} random directions (two-sided, {_LEVEL:g}; "
            f"not corrected for {len(measured)} tests). What detects need not act."
        ),
        tables=(
            Table(
                name="directions",
                columns=(
                    "probe", "moved", "share positive", "95 % from", "to", "p of the share", "mean derivative",
                    "random: 95 % within", "p of the mean",
                ),
                rows=tuple(_row(each) for each in measured),
            ),
        ),
    )  # fmt: skip


def _names(measured: list[Sensitivity], moved: str) -> str:
    return ", ".join(each.name for each in measured if each.moved == moved and each.p_mean < _LEVEL) or "none"


def _row(each: Sensitivity) -> tuple[str | float, ...]:
    share = rate(int((each.derivatives > 0).sum()), len(each.derivatives))
    bound = float(np.quantile(np.abs(each.random.mean(axis=1)), 0.95))
    mean = float(each.derivatives.mean())
    return each.name, each.moved, share.value, share.low, share.high, each.p_share, mean, bound, each.p_mean


STUDY = Study("concept_sensitivity", sensitivity_study, rank=70)
