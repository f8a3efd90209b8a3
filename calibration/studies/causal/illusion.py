"""The subspace-illusion check (arXiv 2311.17030): does patching along a direction act through what the model itself
uses?

A direction can carry the difference between prompts in one component and move the output by another along which no
prompt ever differs. Patching along it then works, and proves nothing. So each direction is split into its part within
the principal components that make up nearly all variation between prompts where it is read, and the dormant rest; the
patch's displacement is made along each part alone. (The paper's other split, by the null space of the weights that
read, says nothing here: the output head alone reads every direction of the residual stream.)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_stream, together
from calibration.model.refusal_metric import first_token_log_probs, refusal_metric
from calibration.prompts.batching import Batch
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.studies.causal.directions import Direction, required_directions
from probes.manifest import EMBEDDINGS

_MOST = 48
_VARIATION = 0.99
"""Share of variance that the components of the active part make up."""
_LEAST = 0.05
"""Share of the untouched log-odds of refusal below which an effect is none to speak of."""


@dataclass(frozen=True, slots=True)
class DirectionPatch:
    """A patch at one block: the projection on `read` is measured, and its gap to `level` added along `write`."""

    read: torch.Tensor
    write: torch.Tensor
    level: float


@dataclass(frozen=True, slots=True)
class Patched:
    """What patching along a direction, and along its parts, does: mean refusal log-odds lost on harmful prompts."""

    name: str
    active_norm: float
    """Share of the direction's squared length that lies within what varies between prompts."""
    whole: float
    active: float
    dormant: float
    classes: float
    """The same for moving all of the difference between the classes' means."""
    untouched: float
    """Mean log-odds of refusal before anything is moved."""

    @property
    def verdict(self) -> str:
        """Say whether the direction acts, and through what."""
        if abs(self.whole) < _LEAST * abs(self.untouched):
            return "no effect on refusal where it reads: it detects and does not act"
        if abs(self.dormant) > abs(self.active):
            return "ILLUSION: acts mostly along what does not vary between prompts"
        return "acts along what varies between prompts"


def illusion_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:
    """Return the study of every residual probe. Raises `Skipped` without one, and where nothing is refused."""
    tokens, wanted = training.require_refusals(), _within_blocks(required_directions(found, training.chat.hidden_size))
    prompts = _refused(training, tokens)
    if not prompts.prompts:
        raise Skipped("the model refuses none of the harmful selection prompts tried")
    patched = [check(training, each, tokens, prompts) for each in track(wanted, "checking for illusions")]
    return (_study(patched, len(prompts.prompts)),)


def _within_blocks(wanted: Sequence[Direction]) -> list[Direction]:
    """Return the directions without their part at the embeddings: there is no prompt in them yet, only its words.

    Raises `Skipped` where nothing is left.
    """
    parts = [{layer: unit for layer, unit in each.units.items() if layer != EMBEDDINGS} for each in wanted]
    if not any(parts):
        raise Skipped("probes read the embeddings alone")
    return [replace(each, units=units) for each, units in zip(wanted, parts, strict=True) if units]


def check(training: TrainingSet, direction: Direction, tokens: tuple[int, ...], prompts: EncodedPrompts) -> Patched:
    """Return what patching `direction` to the harmless mean does to the refusal of harmful `prompts`."""
    whole: dict[int, DirectionPatch] = {}
    active, dormant, classes = dict(whole), dict(whole), dict(whole)
    for layer, unit in direction.units.items():
        features = training.features(layer, direction.where, training.fit)
        harmful = training.harmful[training.fit]
        inside = _project(features, unit)
        level = float(features[~harmful].mean(axis=0, dtype=np.float64) @ unit.double().numpy())
        whole[layer] = DirectionPatch(unit, unit, level)
        active[layer] = DirectionPatch(unit, inside, level)
        dormant[layer] = DirectionPatch(unit, unit - inside, level)
        classes[layer] = _between(features[harmful].mean(axis=0), features[~harmful].mean(axis=0))
    untouched = _metric(training.chat, prompts, tokens, {}, direction)
    left = [_metric(training.chat, prompts, tokens, way, direction) for way in (whole, active, dormant, classes)]
    share = sum(float(move.write.norm() ** 2) for move in active.values()) / len(active)
    return Patched(
        name=direction.name,
        active_norm=share,
        whole=untouched - left[0],
        active=untouched - left[1],
        dormant=untouched - left[2],
        classes=untouched - left[3],
        untouched=untouched,
    )


def _refused(training: TrainingSet, tokens: tuple[int, ...]) -> EncodedPrompts:
    sample = training.prompts.subset(training.sample(training.select, harmful=True, most=_MOST))
    return sample.subset(np.flatnonzero(refusal_metric(first_token_log_probs(training.chat, sample), tokens) > 0))


def _project(features: np.ndarray[Any, np.dtype[np.float32]], unit: torch.Tensor) -> torch.Tensor:
    """Return the part of `unit` `[D]` within the principal components of features `[N, D]` that hold the variation."""
    centred = torch.from_numpy(features.astype(np.float64) - features.mean(axis=0, dtype=np.float64))
    values, components = torch.linalg.eigh(centred.T @ centred)
    held = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    count = int((held < _VARIATION).sum()) + 1
    basis = components.flip(1)[:, :count]
    inside: torch.Tensor = basis @ (basis.T @ unit.double())
    return inside.float()


def _between(harmful: Any, harmless: Any) -> DirectionPatch:
    """Return the move by the whole difference in means: nothing is read, all of it is added."""
    shift = torch.from_numpy(np.asarray(harmless - harmful, dtype=np.float32))
    return DirectionPatch(torch.zeros_like(shift), shift, 1.0)


def _metric(
    chat: ChatModel,
    prompts: EncodedPrompts,
    tokens: tuple[int, ...],
    moves: Mapping[int, DirectionPatch],
    direction: Direction,
) -> float:
    log_probs = first_token_log_probs(chat, prompts, partial(_moved, chat, moves, direction))
    return float(refusal_metric(log_probs, tokens).mean())


def _moved(
    chat: ChatModel, moves: Mapping[int, DirectionPatch], direction: Direction, batch: Batch
) -> AbstractContextManager[None]:
    return moved(chat, moves, direction.positions(batch))


@contextmanager
def moved(chat: ChatModel, moves: Mapping[int, DirectionPatch], positions: torch.Tensor) -> Iterator[None]:
    """Within the block, each move is made after its block at `positions`, a mask `[B, T]`."""

    def make(move: DirectionPatch, stream: torch.Tensor) -> torch.Tensor:
        exact = stream.float()
        gap = (move.level - exact @ move.read.to(exact.device)) * positions
        return (exact + gap.unsqueeze(-1) * move.write.to(exact.device)).to(stream.dtype)

    with together(on_stream(chat.blocks, layer, partial(make, move)) for layer, move in moves.items()):
        yield


def _study(patched: list[Patched], count: int) -> StudyResult:
    grouped = {each.verdict: [other.name for other in patched if other.verdict == each.verdict] for each in patched}
    verdicts = "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in grouped.items())
    return StudyResult(
        name="subspace_illusion",
        title="Do the directions act through what the model uses?",
        finding=f"{verdicts}. Measured on {count} refused harmful selection prompts, patched to the mean of harmless "
        f"ones; their log-odds of refusal are {patched[0].untouched:.2f} untouched.",
        tables=(
            Table(
                name="parts",
                columns=(
                    "probe", "log-odds lost, whole direction", "along its active part", "along its dormant part",
                    "all of the difference in means", "share of length that is active", "verdict",
                ),
                rows=tuple(
                    (each.name, each.whole, each.active, each.dormant, each.classes, each.active_norm, each.verdict)
                    for each in patched
                ),
            ),
        ),
    )  # fmt: skip


STUDY = Study("subspace_illusion", illusion_study, rank=80)
