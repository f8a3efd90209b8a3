"""How far the weights of each head and each neuron moved between two builds, and whether one direction left them
all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from calibration.audits.builds.reading import Build
from calibration.model.attention_heads import Attention
from calibration.model.structure import is_matrix

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WrittenDirection:
    """The direction on which what the blocks write changed most."""

    direction: Floats
    """Unit `[D]`."""
    share: float
    """Of the squared change of all writing matrices, how much lies on it; 1 / D where nothing is special about it."""
    kept: float
    """How much of what the first build writes along it the second still writes, as a ratio of norms."""


def head_weight_changes(first: Build, second: Build) -> Floats:
    """Return the relative change `[H]` of all that is a head's own: queries, its group's keys and values, output."""
    pairs = zip(first.attentions, second.attentions, strict=True)
    return np.array([_head_change(ours, theirs, index) for ours, theirs in pairs for index in range(len(ours.queries))])


def neuron_weight_changes(first: Build, second: Build) -> Floats:
    """Return the relative change `[L, W]` of each neuron's weights: its column going out, and its rows coming in."""
    changes = []
    for block, (ours, theirs) in enumerate(zip(first.projections, second.projections, strict=True)):
        before, after = _matrix(ours), _matrix(theirs)
        moved, size = (after - before).square().sum(0), before.square().sum(0)
        for coming, now in _incoming(first, second, block, before.shape[1]):
            moved, size = moved + (now - coming).square().sum(1), size + coming.square().sum(1)
        changes.append((moved / size.clamp(min=1e-30)).sqrt().numpy())
    return np.stack(changes) if changes else np.empty((0, 0))


def written_direction(first: Build, second: Build) -> WrittenDirection | None:
    """Return where the change of all attention outputs and down-projections points, or nothing where there is none."""
    spread = torch.zeros(first.chat.hidden_size, first.chat.hidden_size, dtype=torch.float64)
    for before, after in _writing(first, second):
        spread += (after - before) @ (after - before).T
    if not spread.any():
        return None
    values, vectors = torch.linalg.eigh(spread)
    direction = vectors[:, -1]
    wrote = writes = 0.0
    for before, after in _writing(first, second):
        wrote += float((direction @ before).square().sum())
        writes += float((direction @ after).square().sum())
    return WrittenDirection(direction.numpy(), float(values[-1] / values.sum()), (writes / max(wrote, 1e-30)) ** 0.5)


def _writing(first: Build, second: Build) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the matrices that write to the residual stream, in both builds, one at a time."""
    ours = [*(each.output for each in first.attentions), *first.projections]
    theirs = [*(each.output for each in second.attentions), *second.projections]
    for one, other in zip(ours, theirs, strict=True):
        yield _matrix(one), _matrix(other)


def _head_change(ours: Attention, theirs: Attention, index: int) -> float:
    columns = ours.columns(index)
    before, after = ([_matrix(each.output)[:, columns]] for each in (ours, theirs))
    for one, other in zip(ours.sources[index].items(), theirs.sources[index].items(), strict=True):
        before.append(_matrix(one[0])[one[1].cpu()])
        after.append(_matrix(other[0])[other[1].cpu()])
    moved = sum(float((now - then).square().sum()) for then, now in zip(before, after, strict=True))
    size = sum(float(then.square().sum()) for then in before)
    return float((moved / max(size, 1e-30)) ** 0.5)


def _incoming(first: Build, second: Build, block: int, num_neurons: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the matrices of a block that give one number per neuron, in both builds; fused ones are not taken apart."""
    reads = {module for each in first.attentions[block : block + 1] for part in each.sources for module in part}
    for ours, theirs in zip(first.chat.blocks[block].modules(), second.chat.blocks[block].modules(), strict=True):
        if is_matrix(ours) and ours not in reads and ours is not first.projections[block]:
            before, after = _matrix(ours), _matrix(theirs)
            if len(before) == num_neurons:
                yield before, after


def _matrix(module: nn.Module) -> torch.Tensor:
    """Return a module's matrix `[out, in]`, float64; GPT-2's own kind keeps it the other way round."""
    weight: torch.Tensor = module.weight.detach().double().cpu()  # type: ignore[operator]  # any matrix module
    return weight if isinstance(module, nn.Linear) else weight.T
