"""Activations: what the residual stream held after every block, read once per prompt and kept on disk.

Shards are written whole, one after another, so an interrupted run goes on where it stopped and ends with the same
bytes, and memory holds one shard however many prompts there are. Positions count from the prompt's end, as in readouts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input, on_output, on_stream, together
from calibration.prompts.batching import Batch, make_batch
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts, read_template
from calibration.recording.places import Where, content_positions
from calibration.recording.recording import Recording
from calibration.recording.shards import (
    ActivationSource,
    Shard,
    Tensors,
    is_whole,
    plan_shards,
    save_shard,
    tensor_name,
)
from probes.errors import CalibrationError
from probes.template import Template

__all__ = ["InProcess", "Recording", "read_blocks", "read_shard", "record"]


@contextmanager
def read_blocks(
    chat: ChatModel, layers: Sequence[int], keep: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the dictionary, at each pass, with `keep(stream [B, T, D])` by layer. Hooks are gone at exit.

    A layer is a block, whose output is kept, or `EMBEDDINGS`.
    """
    kept: dict[int, torch.Tensor] = {}

    def see(layer: int, stream: torch.Tensor) -> None:
        kept[layer] = keep(stream)

    with together(on_stream(chat.blocks, layer, partial(see, layer)) for layer in layers):
        yield kept


@contextmanager
def read_neurons(
    projections: Mapping[int, nn.Module], keep: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the dictionary, at each pass, with `keep(mlp_neurons)` by layer, from blocks' down-projections by layer.

    Neurons come as `[B, T, W]`, or from a few models as `[B * T, W]`. Hooks are gone at exit.
    """
    kept: dict[int, torch.Tensor] = {}

    def see(layer: int, neurons: torch.Tensor) -> None:
        kept[layer] = keep(neurons)

    with together(on_input(module, partial(see, layer)) for layer, module in projections.items()):
        yield kept


def record(
    chat: ChatModel,
    prompts: EncodedPrompts,
    where: Sequence[Where],
    folder: Path,
    *,
    title: str = "reading activations",
    source: ActivationSource | None = None,
) -> Recording:
    """Read every block at the positions `where` of every prompt into shards in `folder`; finished shards are reused.

    `folder` must be named for the model, the prompts, the positions and the `source` (`chat` itself where none is
    named), so that what lies there is of this run. Raises `CalibrationError` naming the prompt and the layer where an
    activation is NaN or infinite, and where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(prompts.lengths.tolist(), chat.num_layers * chat.hidden_size * len(where))
    paths = [folder / f"{shard.index:05d}.safetensors" for shard in shards]
    missing = [shard for shard in shards if not is_whole(paths[shard.index])]
    read = (source or InProcess(chat)).read(prompts, where, missing)
    for shard, tensors in track(read, title, total=len(missing)):
        _require_finite(tensors, prompts, where, chat.num_layers)
        save_shard(tensors, paths[shard.index])
    return Recording(tuple(paths), len(prompts.prompts))


@dataclass(frozen=True, slots=True)
class InProcess:
    """The source that is there without asking: the model in this process."""

    chat: ChatModel

    def read(
        self, prompts: EncodedPrompts, where: Sequence[Where], shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Tensors]]:
        """Yield the shards in their order."""
        for shard in shards:
            yield shard, read_shard(self.chat, prompts.token_ids, where, shard)


def read_shard(chat: ChatModel, token_ids: Sequence[Sequence[int]], where: Sequence[Where], shard: Shard) -> Tensors:
    """Return the content of one shard. `token_ids` are those of all prompts: the shard's rows index them.

    Hooks write into the shard's own tensors, on the model's device, and the host is met once, at the end.
    """
    dtype = next(chat.model.parameters()).dtype
    num_rows = len(shard.rows)
    tensors = {
        tensor_name(place, layer): torch.empty(
            num_rows, chat.hidden_size, dtype=torch.float32 if place == "content" else dtype, device=chat.device
        )
        for place in where
        for layer in range(chat.num_layers)
    }
    template = read_template(chat.tokenizer) if "content" in where else None
    first = 0
    for rows in shard.batches:
        batch = make_batch(token_ids, rows, chat.device)
        weights = _content_weights(template, [token_ids[row] for row in rows], batch) if template else None
        into = {name: tensor[first : first + len(rows)] for name, tensor in tensors.items()}
        keep = _keep(batch, where, weights, into)
        with together(on_output(block, partial(keep, layer)) for layer, block in enumerate(chat.blocks)):
            chat.last_logits(batch)
        first += len(rows)
    return {name: tensor.cpu() for name, tensor in tensors.items()} | {"rows": torch.tensor(shard.rows)}


def _content_weights(template: Template, token_ids: Sequence[Sequence[int]], batch: Batch) -> torch.Tensor:
    """Return the weights `[B, 1, T]` by which each prompt's tokens make the mean over its content."""
    weights = torch.zeros(batch.input_ids.shape)
    for row, ids in enumerate(token_ids):
        positions = content_positions(template, ids)
        weights[row, list(positions)] = 1 / len(positions)
    return weights.unsqueeze(1).to(batch.input_ids.device)


def _keep(
    batch: Batch, where: Sequence[Where], weights: torch.Tensor | None, into: Tensors
) -> Callable[[int, torch.Tensor], None]:
    index = torch.arange(len(batch.lengths), device=batch.lengths.device)
    positions = {place: batch.from_end(place) for place in where if place != "content"}

    def see(layer: int, stream: torch.Tensor) -> None:
        for place, position in positions.items():
            into[tensor_name(place, layer)].copy_(stream[index, position])
        if weights is not None:
            into[tensor_name("content", layer)].copy_(torch.bmm(weights, stream.float())[:, 0])

    return see


def _require_finite(tensors: Tensors, prompts: EncodedPrompts, where: Sequence[Where], num_layers: int) -> None:
    for layer in range(num_layers):
        finite: npt.NDArray[np.bool_] = np.ones(len(tensors["rows"]), dtype=bool)
        for place in where:
            finite &= torch.isfinite(tensors[tensor_name(place, layer)]).all(dim=1).numpy()
        if not finite.all():
            prompt = prompts.prompts[int(tensors["rows"][int(finite.argmin())])]
            raise CalibrationError(
                f"the activations after block {layer} are NaN or infinite",
                field=f"prompt {prompt.id}",
                remedy="load the model in the precision it was trained in (float16 overflows where bfloat16 does not)",
            )
