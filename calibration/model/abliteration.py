"""Abliteration: whether a checkpoint's weights were made unable to write one direction (arXiv 2406.11717, section 4.1).

Such a model does not refuse, whatever it is asked, and what its refusals would tell of a request is gone. The weights
alone show it: everything that writes to the residual stream has next to nothing along the same direction. In other
checkpoints even the direction that is written least has more than rounding leaves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from calibration.model.chat_model import ChatModel

_NOTHING = 1e-4
"""Share of an average direction's energy. Rounding an ablated lab model to bfloat16 leaves at most 5e-6 in any
matrix. Of the direction that they write least, every matrix of the lab's pair and of SmolLM2 has 0.1 or more."""
_FEWEST = 0.5
"""Share of the writers that must lack the direction: one matrix alone may lack any."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """A direction that weights do not write."""

    direction: torch.Tensor
    """Unit vector `[D]`."""
    lacking: int
    """How many of the writers have nothing along it."""
    writers: int

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        return (
            f"the checkpoint is abliterated: {self.lacking} of {self.writers} matrices that write to the residual "
            "stream write nothing along one and the same direction"
        )


def find_ablation(chat: ChatModel) -> Ablation | None:
    """Return the direction that most of the model's writers lack, or None where there is no such direction.

    It is looked for in all blocks together, and in the middle half of them, which is what most tools ablate.
    """
    matrices = list(_matrices(chat))
    quarter = len(matrices) // 4
    for window in (matrices, matrices[quarter : len(matrices) - quarter]):
        direction = _least_written(window) if window else None
        lacking = [matrix for matrix in matrices if direction is not None and _share(matrix, direction) < _NOTHING]
        if direction is not None and len(lacking) >= max(_FEWEST * len(matrices), 2):
            return Ablation(direction, len(lacking), len(matrices))
    return None


def _matrices(chat: ChatModel) -> Iterator[torch.Tensor]:
    """Yield the matrix `[D, inputs]` by which each writer writes; writers without a single one are left out."""
    for writer in chat.writers:
        fitting = [
            each for each in map(_weight, writer.modules()) if each is not None and len(each) == chat.hidden_size
        ]
        if fitting:
            yield fitting[-1]


def _weight(module: nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    # GPT-2's Conv1D keeps its weight as [inputs, outputs], everything else as [outputs, inputs].
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _least_written(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the unit vector along which the matrices write least, each counting alike."""
    total = torch.zeros(len(matrices[0]), len(matrices[0]), device=matrices[0].device)
    for matrix in matrices:
        exact = matrix.float()
        total.addmm_(exact, exact.T, alpha=1 / float(exact.square().sum().clamp_min(1e-30)))
    vectors: torch.Tensor = torch.linalg.eigh(total.double())[1]
    return vectors[:, 0].float()


def _share(matrix: torch.Tensor, direction: torch.Tensor) -> float:
    """Return the energy that a matrix has along a direction, in shares of an average direction's."""
    exact = matrix.float()
    return float((direction @ exact).square().sum() * len(exact) / exact.square().sum().clamp_min(1e-30))
