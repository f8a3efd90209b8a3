"""Token streams: what some blocks held at every token of a prompt, read once for all probes that are trained on
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import iterate_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.recording.activations import read_blocks
from probes.readout import Readout
from probes.template import whole

Scores = Sequence[npt.NDArray[np.float32]]
"""Per prompt `[T, C]`."""

_DEPTHS = (0.25, 0.85)
_MOST_LAYERS = 8
_MOST_BYTES = 2 << 30
"""Held while training; a wide model reads fewer blocks rather than more memory."""


@dataclass(frozen=True, slots=True)
class TokenStreams:
    """The streams of N prompts, and their labels."""

    streams: tuple[torch.Tensor, ...]
    """Per prompt `[T, L, D]`, in the model's precision."""
    harmful: npt.NDArray[np.bool_]

    def __add__(self, other: "TokenStreams") -> "TokenStreams":
        return TokenStreams(self.streams + other.streams, np.concatenate([self.harmful, other.harmful]))

    def blocks(self, which: slice) -> "TokenStreams":
        """Return the same prompts at some of the blocks, as views."""
        return TokenStreams(tuple(stream[:, which] for stream in self.streams), self.harmful)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation `[L, D]` over all tokens, accumulated in float64."""
        count = sum(len(stream) for stream in self.streams)
        mean = torch.stack([stream.double().sum(0) for stream in self.streams]).sum(0) / count
        square = torch.stack([(stream.double() - mean).square().sum(0) for stream in self.streams]).sum(0) / count
        return mean.float(), square.sqrt().clamp(min=1e-6).float()

    def token_scores(self, weight: torch.Tensor) -> list[npt.NDArray[np.float32]]:
        """Return each prompt's token scores `[T, C]` by `weight` `[L, C, D]`, as serving computes them."""
        columns = weight.transpose(1, 2).flatten(0, 1)
        return [(stream.float().flatten(1) @ columns).numpy() for stream in self.streams]


def affordable_tokens(chat: ChatModel) -> int:
    """Return how many tokens may be held at one block."""
    return _MOST_BYTES // (chat.hidden_size * next(chat.model.parameters()).element_size())


def choose_layers(chat: ChatModel, num_tokens: int, most: int | None = None, beside: int = 0) -> tuple[int, ...]:
    """Return blocks between a quarter and 85 % of the depth, evenly spread: as many as can be held of `num_tokens`.

    No more than `most` of them, and room is left for so many `beside` them.
    """
    low, high = (share * chat.num_layers for share in _DEPTHS)
    middle = [layer for layer in range(chat.num_layers) if low <= layer + 1 <= high] or [chat.num_layers - 1]
    held = max(min(len(middle), most or _MOST_LAYERS, affordable_tokens(chat) // num_tokens - beside), 1)
    keep = np.unique(np.linspace(0, len(middle) - 1, held).round().astype(int))
    return tuple(middle[index] for index in keep)


def read_streams(chat: ChatModel, prompts: EncodedPrompts, layers: Sequence[int]) -> TokenStreams:
    """Pass the prompts through the model and keep the streams of `layers`."""
    streams: list[torch.Tensor] = [torch.empty(0)] * len(prompts.prompts)
    for batch in track(list(iterate_batches(prompts.token_ids, chat.device)), "reading every token"):
        with read_blocks(chat, layers, lambda stream: stream.cpu()) as kept:
            chat.last_logits(batch)
        for place, (index, length) in enumerate(zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)):
            streams[index] = torch.stack([kept[layer][place, :length] for layer in layers], dim=1)
    return TokenStreams(tuple(streams), prompts.harmful)


def request_values(scores: Scores, readout: Readout) -> npt.NDArray[np.float64]:
    """Return for each prompt's token scores `[T, C]` the sum of the readout's values, as serving computes it, `[N]`."""
    return np.array([readout.reduce(each[readout.positions(whole(len(each)))]).sum() for each in scores])
