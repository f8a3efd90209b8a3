"""What one build does with a set of prompts: its answers, its activations where the answer begins, and its heads'
Ships.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from calibration.model.attention_heads import Attention, Head, all_heads, find_attentions
from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import Batch, iterate_batches
from calibration.prompts.progress import stage
from calibration.prompts.template import EncodedPrompts
from calibration.recording.activations import read_blocks, read_neurons
from calibration.studies.heads.ships import HeadScores
from probes.errors import ModelError


@dataclass(frozen=True, slots=True)
class Build:
    """A build with those of its parts that can be compared; `missing` says in words which cannot."""

    chat: ChatModel
    attentions: tuple[Attention, ...]
    projections: tuple[nn.Module, ...]
    """Down-projections `[L]`, whose inputs are the neurons."""
    missing: tuple[str, ...]

    @classmethod
    def of(cls, chat: ChatModel) -> "Build":
        """Find the parts."""
        missing: list[str] = []
        attentions: tuple[Attention, ...] = ()
        projections: tuple[nn.Module, ...] = ()
        try:
            attentions = find_attentions(chat)
        except ModelError as error:
            missing.append(f"heads were not compared: {error.problem}")
        try:
            projections = tuple(chat.down_projections())
        except ModelError as error:
            missing.append(f"neurons were not compared: {error.problem}")
        return cls(chat, attentions, projections, tuple(missing))

    @property
    def heads(self) -> list[Head]:
        """All heads, block by block; none where they cannot be told apart."""
        return all_heads(self.attentions)


@dataclass(frozen=True, slots=True)
class Side:
    """N prompts of one class at their last positions."""

    log_probs: torch.Tensor
    """Of the first token, float32 `[N, V]`."""
    streams: npt.NDArray[np.float64]
    """`resid_post` `[L, N, D]`."""
    neurons: npt.NDArray[np.float64]
    """`[L, N, W]`; no blocks where neurons cannot be read."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A build's behaviour on harmful and harmless prompts."""

    harmful: Side
    harmless: Side
    ships: npt.NDArray[np.float64]
    """Of each head on each harmful prompt that heads are scored by, `[H, M]`."""


@dataclass(frozen=True, slots=True)
class Questions:
    """The prompts that builds are compared by."""

    harmful: EncodedPrompts
    harmless: EncodedPrompts
    scoring: EncodedPrompts
    """Harmful prompts that pass the model once for every head."""


def read_build(build: Build, questions: Questions, name: str) -> Reading:
    """Read a build; `name` is what a watching person sees."""
    with stage(f"reading {name}"):
        scores = HeadScores(build.chat, build.attentions, questions.scoring)
        effects = scores.effects(build.heads, title=f"heads of {name}") if build.heads else []
        ships = np.array([effect.ships for effect in effects])
        return Reading(_read_side(build, questions.harmful), _read_side(build, questions.harmless), ships)


def _read_side(build: Build, prompts: EncodedPrompts) -> Side:
    batches = list(iterate_batches(prompts.token_ids, build.chat.device))
    order = np.argsort(np.concatenate([batch.rows for batch in batches]))
    log_probs, streams, neurons = zip(*(_read_batch(build, batch) for batch in batches), strict=True)
    return Side(
        torch.cat(log_probs)[order],
        np.concatenate(streams, axis=1)[:, order],
        np.concatenate(neurons, axis=1)[:, order],
    )


def _read_batch(build: Build, batch: Batch) -> tuple[torch.Tensor, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rows = torch.arange(len(batch.lengths), device=batch.lengths.device)

    def last(values: torch.Tensor) -> torch.Tensor:
        # Some families hand their MLP the tokens of all prompts as one list.
        return values.reshape(*batch.input_ids.shape, -1)[rows, batch.from_end(0)].double().cpu()

    layers = range(build.chat.num_layers)
    projections = dict(enumerate(build.projections))
    with read_blocks(build.chat, layers, last) as streams, read_neurons(projections, last) as neurons:
        log_probs = build.chat.last_logits(batch).log_softmax(dim=-1).cpu()
    read = np.stack([neurons[layer].numpy() for layer in projections]) if projections else np.empty((0, len(rows), 0))
    return log_probs, np.stack([streams[layer].numpy() for layer in layers]), read
