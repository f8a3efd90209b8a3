"""Interventions: the model with a direction taken out of its residual stream, or steered as the server steers it.

Ablation as in arXiv 2406.11717, section 2.4: for measuring only, the served model is never run under it. Steering goes
through `probes.operators`, which the server runs too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input, on_output, on_stream, together
from probes.steering import Move, displacement

Strengths = Callable[[torch.Tensor], torch.Tensor]
"""From a stream `[B, T, D]` the strength `[B, T]` of steering at each position."""

_Edit = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def ablated(chat: ChatModel, direction: torch.Tensor) -> Iterator[None]:
    """Within the block, the model runs without `direction` `[D]`, which need not be normalised.

    `x - (x . d) d`, with unit d, replaces x at every block's input and every attention and MLP output, all positions.
    """
    unit = torch.nn.functional.normalize(direction.float().to(chat.device), dim=0)

    def remove(stream: torch.Tensor) -> torch.Tensor:
        exact = stream.float()
        clean: torch.Tensor = exact - (exact @ unit).unsqueeze(-1) * unit
        return clean.to(stream.dtype)

    inputs = [on_input(block, remove) for block in chat.blocks]
    with together([*inputs, *(on_output(writer, remove) for writer in chat.writers)]):
        yield


@contextmanager
def added(chat: ChatModel, layer: int, vector: torch.Tensor, *, only: torch.Tensor | None = None) -> Iterator[None]:
    """Within the block, `vector` `[D]` is added after block `layer`: at all positions, or at `only` `[B]`, one per
    prompt.
    """

    def everywhere(stream: torch.Tensor) -> torch.Tensor:
        return torch.ones(stream.shape[:2], device=stream.device)

    move = Move(0, "add", None, (vector.float(),))
    with steered(chat, {layer: move}, everywhere if only is None else at(only)):
        yield


@contextmanager
def steered(chat: ChatModel, moves: Mapping[int, Move], strengths: Strengths) -> Iterator[None]:
    """Within the block, each move displaces the stream after its block, at the strengths given; elsewhere it stays."""
    with together(
        on_stream(chat.blocks, layer, _displace(move, strengths, chat.device)) for layer, move in moves.items()
    ):
        yield


def at(positions: torch.Tensor, strength: float = 1.0) -> Strengths:
    """Return strengths that are `strength` at `positions` `[B]`, one per prompt, and 0 elsewhere."""

    def strengths(stream: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(stream.shape[:2], device=stream.device)
        found[torch.arange(len(positions), device=stream.device), positions] = strength
        return found

    return strengths


def at_last(strength: float) -> Strengths:
    """Return strengths that are `strength` at the last position of a pass over texts that are aligned at their end."""

    def strengths(stream: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(stream.shape[:2], device=stream.device)
        found[:, -1] = strength
        return found

    return strengths


def since(positions: torch.Tensor, strength: float, schedule: Sequence[float] = ()) -> Strengths:
    """Return strengths as the server sets them: from each prompt's last position `[B]` on, along the schedule if
    any.
    """
    factors = torch.tensor(list(schedule) or [1.0])

    def strengths(stream: torch.Tensor) -> torch.Tensor:
        after = torch.arange(stream.shape[1], device=stream.device) - positions.unsqueeze(1)
        own = factors.to(stream.device)[after.clamp(0, len(factors) - 1)]
        return torch.where(after >= 0, strength * own, 0.0)

    return strengths


def _displace(move: Move, strengths: Strengths, device: torch.device) -> _Edit:
    placed = Move(0, move.operator, move.gate, tuple(tensor.to(device) for tensor in move.tensors))

    def edit(stream: torch.Tensor) -> torch.Tensor:
        strength = strengths(stream)
        rows = strength != 0
        edited, chosen = stream.clone(), stream[rows]
        delta = displacement(chosen, strength[rows].unsqueeze(1), [placed])
        edited[rows] = (chosen.float() + delta).to(stream.dtype)
        return edited

    return edit


@contextmanager
def recentred(
    chat: ChatModel, layer: int, direction: torch.Tensor, positions: torch.Tensor, levels: torch.Tensor
) -> Iterator[None]:
    """Within the block, the projection on `direction` `[D]` after block `layer` is `levels` `[P]` at `positions` `[B,
    P]`.

    Affine ablation (arXiv 2411.09003): where harmless prompts do not project to zero, removing the component altogether
    would move them too; setting it to their mean leaves them where they are.
    """
    unit = torch.nn.functional.normalize(direction.float().to(chat.device), dim=0)

    def recentre(stream: torch.Tensor) -> torch.Tensor:
        edited = stream.clone()
        rows = torch.arange(len(positions), device=stream.device).unsqueeze(1)
        exact = stream[rows, positions].float()
        gap = levels.to(chat.device) - exact @ unit
        edited[rows, positions] = (exact + gap.unsqueeze(-1) * unit).to(stream.dtype)
        return edited

    with on_stream(chat.blocks, layer, recentre):
        yield


@contextmanager
def grafted(chat: ChatModel, layer: int, states: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Within the block, each prompt's stream after block `layer` is `states` `[B, D]` at its own of `positions`
    `[B]`.
    """

    def graft(stream: torch.Tensor) -> torch.Tensor:
        edited = stream.clone()
        edited[torch.arange(len(positions), device=stream.device), positions] = states.to(stream)
        return edited

    with on_stream(chat.blocks, layer, graft):
        yield
